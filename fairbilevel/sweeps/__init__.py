"""Sweeps: many jobs of one folder, carried out by whoever comes, on any executor."""

from fairbilevel.sweeps._carry_out import carry_out, is_here, once_at_a_time
from fairbilevel.sweeps._executors import EXECUTORS, Engine, clean_up, engine_of
from fairbilevel.sweeps._sweep import Job, NotReady, Part, Refused, Status, Sweep, failures, status

__all__ = [
    "EXECUTORS",
    "Engine",
    "Job",
    "NotReady",
    "Part",
    "Refused",
    "Status",
    "Sweep",
    "carry_out",
    "clean_up",
    "engine_of",
    "failures",
    "is_here",
    "once_at_a_time",
    "status",
]
