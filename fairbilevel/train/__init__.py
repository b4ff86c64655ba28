"""The one loop of every run: what is planned, the steps in it, the dense model."""

from fairbilevel.train._accumulate import accumulated
from fairbilevel.train._batches import (
    STREAM_DUALS,
    STREAM_FIT,
    STREAM_SCORES,
    STREAM_SELECT,
    Batch,
    Feed,
    gather,
    stream_rows,
)
from fairbilevel.train._dense import dense_start, dense_steps, time_step, train_dense
from fairbilevel.train._divergence import RETREATS, DivergenceError
from fairbilevel.train._feasibility import INFEASIBLE, Feasibility, Reached, Watch
from fairbilevel.train._method import BudgetKind, Granularity, Method
from fairbilevel.train._method_run import MethodRun
from fairbilevel.train._plan import (
    FORWARD_COST,
    Costs,
    Phase,
    Plan,
    affordable,
    costs,
    every,
    held_then_falling,
    learning_rates,
    stages,
)
from fairbilevel.train._report import Best, Callback, Noise, TuneRecord, rollback_warnings
from fairbilevel.train._rules import SCORE_RULES, SGD, Rules, sgd
from fairbilevel.train._run import RunState, StagedRun
from fairbilevel.train._solution import Solution
from fairbilevel.train._state import DualState, StepLog, WeightState
from fairbilevel.train._steps import Steps, masked, scaled
from fairbilevel.train._stretch import (
    Stretch,
    StretchLog,
    all_finite,
    at,
    maybe_dual_step,
    repeated,
    stretch,
    weight_stretch,
)

__all__ = [
    "FORWARD_COST",
    "INFEASIBLE",
    "RETREATS",
    "SCORE_RULES",
    "SGD",
    "STREAM_DUALS",
    "STREAM_FIT",
    "STREAM_SCORES",
    "STREAM_SELECT",
    "Batch",
    "Best",
    "BudgetKind",
    "Callback",
    "Costs",
    "DivergenceError",
    "DualState",
    "Feasibility",
    "Feed",
    "Granularity",
    "Method",
    "MethodRun",
    "Noise",
    "Phase",
    "Plan",
    "Reached",
    "Rules",
    "RunState",
    "Solution",
    "StagedRun",
    "StepLog",
    "Steps",
    "Stretch",
    "StretchLog",
    "TuneRecord",
    "Watch",
    "WeightState",
    "accumulated",
    "affordable",
    "all_finite",
    "at",
    "costs",
    "dense_start",
    "dense_steps",
    "every",
    "gather",
    "held_then_falling",
    "learning_rates",
    "masked",
    "maybe_dual_step",
    "repeated",
    "rollback_warnings",
    "scaled",
    "sgd",
    "stages",
    "stream_rows",
    "stretch",
    "time_step",
    "train_dense",
    "weight_stretch",
]
