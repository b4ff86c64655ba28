"""What reports, comparisons and frontiers draw, as SVG, and the palette of every picture."""

from fairbilevel.report.charts._bars import Bars, Cut, bar_chart
from fairbilevel.report.charts._lines import MOST_LINES, Line, Point, Reference, line_chart
from fairbilevel.report.charts._marks import Panel, Spot, forest_svg, frontier_svg, tradeoff_chart
from fairbilevel.report.charts._palette import DARK, LIGHT, NETWORKS, STYLES, style, variables

__all__ = [
    "DARK",
    "LIGHT",
    "MOST_LINES",
    "NETWORKS",
    "STYLES",
    "Bars",
    "Cut",
    "Line",
    "Panel",
    "Point",
    "Reference",
    "Spot",
    "bar_chart",
    "forest_svg",
    "frontier_svg",
    "line_chart",
    "style",
    "tradeoff_chart",
    "variables",
]
