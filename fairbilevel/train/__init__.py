"""The one training loop, the steps in it, and the dense model."""

from fairbilevel.train._accumulate import accumulated, swept
from fairbilevel.train._batches import Batch, gather, stream_rows
from fairbilevel.train._compiled import Compiled, Costs
from fairbilevel.train._dense import dense_start, dense_steps, train_dense
from fairbilevel.train._divergence import (
    RETREATS,
    DivergenceError,
    Retreats,
    check_finite,
    smaller,
)
from fairbilevel.train._feasibility import INFEASIBLE, Feasibility, Reached, Watch
from fairbilevel.train._feed import Feed
from fairbilevel.train._loop import (
    FORWARD_COST,
    STREAM_DUALS,
    STREAM_FIT,
    STREAM_REFRESH,
    STREAM_SCORES,
    STREAM_SELECT,
    WeightLoop,
    dual_batches,
    masked,
    maybe_dual_step,
    run_weights,
    settled_statistics,
)
from fairbilevel.train._optimizers import SCORE_RULES, scale_by_global_rms, score_descent, sgd
from fairbilevel.train._report import (
    Best,
    Callback,
    Report,
    TuneRecord,
    check_judged,
    rollback_warnings,
    tune_record,
)
from fairbilevel.train._solution import (
    RECALIBRATION_BATCHES,
    REFRESH_BATCHES,
    Solution,
    fine_tune,
    hard_masks,
    multiplier_record,
    recalibration_cost,
)
from fairbilevel.train._staged import StagedRun
from fairbilevel.train._steps import DualState, StepLog, Steps, WeightState, frozen

__all__ = [
    "FORWARD_COST",
    "INFEASIBLE",
    "RECALIBRATION_BATCHES",
    "REFRESH_BATCHES",
    "RETREATS",
    "SCORE_RULES",
    "STREAM_DUALS",
    "STREAM_FIT",
    "STREAM_REFRESH",
    "STREAM_SCORES",
    "STREAM_SELECT",
    "Batch",
    "Best",
    "Callback",
    "Compiled",
    "Costs",
    "DivergenceError",
    "DualState",
    "Feasibility",
    "Feed",
    "Reached",
    "Report",
    "Retreats",
    "Solution",
    "StagedRun",
    "StepLog",
    "Steps",
    "TuneRecord",
    "Watch",
    "WeightLoop",
    "WeightState",
    "accumulated",
    "check_finite",
    "check_judged",
    "dense_start",
    "dense_steps",
    "dual_batches",
    "fine_tune",
    "frozen",
    "gather",
    "hard_masks",
    "masked",
    "maybe_dual_step",
    "multiplier_record",
    "recalibration_cost",
    "rollback_warnings",
    "run_weights",
    "scale_by_global_rms",
    "score_descent",
    "settled_statistics",
    "sgd",
    "smaller",
    "stream_rows",
    "swept",
    "train_dense",
    "tune_record",
]
