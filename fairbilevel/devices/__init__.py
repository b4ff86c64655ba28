"""Devices: where arrays lie, what is compiled for them, how long it takes, how processes meet."""

from fairbilevel.devices._cache import compile_cache, saved_seconds
from fairbilevel.devices._collectives import Collective, bytes_of, collectives
from fairbilevel.devices._lanes import Lanes, apart, lanes, share_of_time
from fairbilevel.devices._placement import Placement, memory, on_device
from fairbilevel.devices._processes import (
    Processes,
    all_say,
    cpu_threads,
    is_first,
    leave,
    lost_others,
    on_first,
    told_by_first,
    use_cpu_threads,
)
from fairbilevel.devices._program import Program, copied
from fairbilevel.devices._timing import Times, timed

__all__ = [
    "Collective",
    "Lanes",
    "Placement",
    "Processes",
    "Program",
    "Times",
    "all_say",
    "apart",
    "bytes_of",
    "collectives",
    "compile_cache",
    "copied",
    "cpu_threads",
    "is_first",
    "lanes",
    "leave",
    "lost_others",
    "memory",
    "on_device",
    "on_first",
    "saved_seconds",
    "share_of_time",
    "timed",
    "told_by_first",
    "use_cpu_threads",
]
