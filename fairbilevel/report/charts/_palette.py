"""The colours of everything that is drawn, on paper and on a dark screen.

Series are those of Okabe and Ito (2008), as dark or as light as it takes to be seen on either
ground (WCAG 2.2 AA: 4.5 for text, 3 for marks and lines). None is told apart by its colour alone:
lines have dashes and marks, bars have outlines and hatches.
"""

import re

LIGHT = {
    "paper": "#ffffff", "ink": "#1a1f24", "soft": "#3d464e", "muted": "#56606a",
    "line": "#e3e6e9", "edge": "#d3d8dd", "tint": "#f4f6f8",
    "green": "#007a59", "amber": "#b27b00", "red": "#b34700",
    "bar": "#e3e6e9", "hatch": "#fbe3ae",
    "s0": "#0072b2", "s1": "#d55e00", "s2": "#00866a", "s3": "#b7588e",
    "s4": "#b27b00", "s5": "#1a1f24", "s6": "#2f8cc9", "s7": "#7d848c",
}  # fmt: skip
DARK = {
    "paper": "#14181c", "ink": "#e8ebee", "soft": "#c3cad1", "muted": "#9aa5b0",
    "line": "#2b3238", "edge": "#3c454d", "tint": "#1f252b",
    "green": "#2fc49a", "amber": "#e6b84a", "red": "#f0803c",
    "bar": "#3c454d", "hatch": "#4a3c17",
    "s0": "#4aa6e0", "s1": "#f0803c", "s2": "#2fc49a", "s3": "#d98db8",
    "s4": "#e6b84a", "s5": "#e8ebee", "s6": "#8fd0f5", "s7": "#9aa5b0",
}  # fmt: skip

STYLES: tuple[tuple[str, str, str], ...] = (
    ("s0", "", "circle"),
    ("s1", "7 3", "square"),
    ("s2", "2 3", "triangle"),
    ("s3", "", "diamond"),
    ("s4", "7 3", "cross"),
    ("s5", "2 3", "ring"),
    ("s6", "10 3 2 3", "square"),
    ("s7", "", "triangle"),
)
"""Colour, dash pattern and mark of the first, second, ... series; at most eight are drawn."""
NETWORKS = {
    "dense": ("Dense", "s5", "diamond"),
    "pruned": ("Pruned", "s0", "circle"),
    "baseline": ("Gradual magnitude", "s4", "square"),
}
"""Name, colour and mark of every network that a report compares; bars have fills of their own."""

# Shapes are painted in `currentColor`; a class of each says which of the palette that is.
_STYLE = """
text{font-size:12px;fill:var(--ink)}
.m{font-size:11.5px;fill:var(--muted)}
.b{font-weight:700}
.halo{paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}
path{fill:none;stroke:currentColor;stroke-linejoin:round}
circle{fill:currentColor}
polygon{fill:currentColor}
.hollow{fill:none;stroke:currentColor;stroke-width:1.6px}
.bar-dense{fill:var(--bar);stroke:var(--muted)}
.bar-pruned{fill:var(--s0);stroke:var(--s0)}
.bar-baseline{stroke:var(--s4)}
""" + "\n".join(f".c-{name}{{color:var(--{name})}}" for name in LIGHT)


def style() -> str:
    """The style sheet of all drawings on a page, which has `variables`."""
    return re.sub(r"^(?=[.a-z])", "figure svg ", _STYLE, flags=re.MULTILINE)


def variables(colors: dict[str, str]) -> str:
    """A palette as variables of a style sheet."""
    return ";".join(f"--{name}:{color}" for name, color in colors.items())


def alone() -> str:
    """The style sheet of a drawing in a file of its own; not all viewers know of variables."""
    text = "svg{background:var(--paper);font-family:system-ui,sans-serif}" + _STYLE
    return re.sub(r"var\(--(\w+)\)", lambda found: LIGHT[found[1]], text)
