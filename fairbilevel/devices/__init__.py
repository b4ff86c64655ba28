"""Many devices: where arrays lie, and how several processes find each other."""

from fairbilevel.devices._collectives import Collective, bytes_of, collectives
from fairbilevel.devices._placement import AXIS, Placement
from fairbilevel.devices._processes import Processes, is_first, on_first, told_by_first

__all__ = [
    "AXIS",
    "Collective",
    "Placement",
    "Processes",
    "bytes_of",
    "collectives",
    "is_first",
    "on_first",
    "told_by_first",
]
