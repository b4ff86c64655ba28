"""Comparisons under one protocol: folds, noise floors, corrected intervals, Holm."""

from fairbilevel.comparison._compare import comparison_status, pack_repetitions, run_comparison
from fairbilevel.comparison._design import REFERENCE, Comparison, run_key, split_methods
from fairbilevel.comparison._files import read_repetition
from fairbilevel.comparison._repetition import run_seed, start_repetition
from fairbilevel.comparison._statistics import corrected_t, holm, permutation_floor, pseudo_values
from fairbilevel.comparison._summary import summarize

__all__ = [
    "REFERENCE",
    "Comparison",
    "comparison_status",
    "corrected_t",
    "holm",
    "pack_repetitions",
    "permutation_floor",
    "pseudo_values",
    "read_repetition",
    "run_comparison",
    "run_key",
    "run_seed",
    "split_methods",
    "start_repetition",
    "summarize",
]
