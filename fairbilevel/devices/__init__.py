"""Devices: where arrays lie, what is compiled for them, how several processes find each other."""

from fairbilevel.devices._cache import compile_cache, default_cache, saved_seconds
from fairbilevel.devices._collectives import Collective, bytes_of, collectives
from fairbilevel.devices._placement import AXIS, Placement, memory, on_device
from fairbilevel.devices._processes import Processes, is_first, on_first, told_by_first
from fairbilevel.devices._program import Program, copied

__all__ = [
    "AXIS",
    "Collective",
    "Placement",
    "Processes",
    "Program",
    "bytes_of",
    "collectives",
    "compile_cache",
    "copied",
    "default_cache",
    "is_first",
    "memory",
    "on_device",
    "on_first",
    "saved_seconds",
    "told_by_first",
]
