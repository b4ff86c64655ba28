"""Runs: configuration, the life of a run folder, plans and evaluations."""

from fairbilevel.run._analyze import (
    EvaluationMode,
    analyze,
    analyze_run,
    choose_rows,
    solution_line,
    solution_plane,
    write_analysis,
)
from fairbilevel.run._certify import certify, certify_run
from fairbilevel.run._config import FREE_OPTIONS, Config, read_config
from fairbilevel.run._evaluate import DataEvaluation, evaluate_run, read_like
from fairbilevel.run._export import (
    export,
    open_model,
    predict_source,
    profile,
    record_export,
    write_answers,
    write_profile,
)
from fairbilevel.run._fields import SWITCHES
from fairbilevel.run._folder import (
    Run,
    check_resumable,
    complete,
    has_result,
    load_run,
    run_folder,
    save_run,
    stored_config,
)
from fairbilevel.run._frontier import (
    frontier_folder,
    frontier_run,
    read_reference,
    write_reference,
)
from fairbilevel.run._listing import RunSummary, list_runs
from fairbilevel.run._plan import Plan, make_plan
from fairbilevel.run._prepare import Prepared, build_problem, prepare, read_data
from fairbilevel.run._result import command, describe_machine, machine, versions
from fairbilevel.run._solve import follow_run, solve_run

__all__ = [
    "FREE_OPTIONS",
    "SWITCHES",
    "Config",
    "DataEvaluation",
    "EvaluationMode",
    "Plan",
    "Prepared",
    "Run",
    "RunSummary",
    "analyze",
    "analyze_run",
    "build_problem",
    "certify",
    "certify_run",
    "check_resumable",
    "choose_rows",
    "command",
    "complete",
    "describe_machine",
    "evaluate_run",
    "export",
    "follow_run",
    "frontier_folder",
    "frontier_run",
    "has_result",
    "list_runs",
    "load_run",
    "machine",
    "make_plan",
    "open_model",
    "predict_source",
    "prepare",
    "profile",
    "read_config",
    "read_data",
    "read_like",
    "read_reference",
    "record_export",
    "run_folder",
    "save_run",
    "solution_line",
    "solution_plane",
    "solve_run",
    "stored_config",
    "versions",
    "write_analysis",
    "write_answers",
    "write_profile",
    "write_reference",
]
