"""What a user takes away from a run: a web page for a client, a table for the terminal.

Both say the same verdict in the same words. They read the plain dictionaries of a run folder
(``config.json``, ``metrics.jsonl``, ``result.json``) and need neither the model nor the data.
"""

from fairbilevel.report._page import render, write_report
from fairbilevel.report._parts import dig, number
from fairbilevel.report._serving import counted_rows, timed_rows
from fairbilevel.report._terminal import summary_table
from fairbilevel.report._verdict import judge, verdict
from fairbilevel.report.charts import Panel, forest_svg, frontier_svg

__all__ = [
    "Panel",
    "counted_rows",
    "dig",
    "forest_svg",
    "frontier_svg",
    "judge",
    "number",
    "render",
    "summary_table",
    "timed_rows",
    "verdict",
    "write_report",
]
