"""How figures look: one palette that colour-blind readers can tell apart, one set of matplotlib settings."""

from __future__ import annotations

from typing import Any

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F")
"""Okabe and Ito's colours, the ones that read on white and on black; index = ``Line.color``."""

INK = "#22242a"
"""Text and axes; the report swaps it for the colour of the page's text."""

GRID = "#9aa0aa"

SETTINGS: dict[Any, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "figure.facecolor": "white",
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    # 0.99995, not 9.5e-5 + 0.9999 in a corner.
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 5),
    "axes.formatter.use_mathtext": True,
    "grid.color": GRID,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": INK,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "font.family": "DejaVu Sans",
    "mathtext.fontset": "dejavusans",
    # Glyphs as outlines and ids from a fixed salt: the same figure is the same file on every machine.
    "svg.fonttype": "path",
    "svg.hashsalt": "lawful",
}


def color(index: int) -> str:
    """The palette's colour; beyond its end it starts again."""
    return PALETTE[index % len(PALETTE)]
