"""Draws a `lawful.experiments.records.Figure` as PNG and SVG, without a display and without dates."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from lawful.experiments.records import STYLE, Figure, Line, Panel
from lawful.reports.style import SETTINGS, color

PANEL_WIDTH, PANEL_HEIGHT = 4.6, 3.3
"""Inches."""

MAX_COLUMNS = 3
CONSTANT = 1e-6
"""A line whose relative spread is below this is drawn as the constant it is."""


METADATA: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
"""The formats that figures are written in, each without what differs from one machine or day to the next."""


def render(figure: Figure) -> dict[str, bytes]:
    """``figure`` as the bytes of its files, by format; equal figures give equal bytes."""
    with mpl.rc_context(rc=SETTINGS):
        canvas = _draw(figure)
        # Laying out costs as much as drawing, and serves every format.
        canvas.draw_without_rendering()
        canvas.set_layout_engine("none")
        files: dict[str, bytes] = {}
        for format, metadata in METADATA.items():
            buffer = io.BytesIO()
            canvas.savefig(buffer, format=format, metadata=metadata)
            files[format] = buffer.getvalue()
    return files


def _draw(figure: Figure) -> Canvas:
    columns = min(len(figure.panels), MAX_COLUMNS)
    rows = -(-len(figure.panels) // columns)
    below = max(_rows_below(panel) for panel in figure.panels)
    size = (PANEL_WIDTH * columns, (PANEL_HEIGHT + 0.2 * below) * rows)
    canvas = Canvas(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.04, hspace=0.06))
    FigureCanvasAgg(canvas)
    grid = canvas.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(figure.panels) :]:
        axes.remove()
    for axes, panel in zip(grid.flat, figure.panels, strict=False):
        _draw_panel(axes, panel, with_notes=any(panel.note for panel in figure.panels))
    return canvas


def _draw_panel(axes: Axes, panel: Panel, *, with_notes: bool) -> None:
    axes.set_xscale(panel.xscale)
    axes.set_yscale(panel.yscale)
    for index, line in enumerate(panel.lines):
        _draw_line(axes, line, color(index if line.color is None else line.color))
    axes.set_xlabel(panel.xlabel)
    axes.set_ylabel(panel.ylabel)
    axes.set_title(panel.title, pad=20 if with_notes else 8)
    if panel.note:
        axes.annotate(
            panel.note, (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", fontsize=8.5, alpha=0.8
        )
    _draw_legend(axes, panel)
    _breathe(axes, panel)
    _count(axes, panel)


def _draw_line(axes: Axes, line: Line, shade: str) -> None:
    x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
    if line.low is not None and line.high is not None:
        axes.fill_between(
            x,
            np.asarray(line.low, dtype=float),
            np.asarray(line.high, dtype=float),
            color=shade,
            alpha=line.opacity,
            lw=0,
        )
    style = STYLE.fullmatch(line.style)
    assert style is not None  # Line checks it
    marker, stroke = style["marker"] or None, style["stroke"] or "none"
    axes.plot(x, y, color=shade, label=line.label or "_", marker=marker, linestyle=stroke)


def _labels(panel: Panel) -> Sequence[str]:
    return [line.label for line in panel.lines if line.label]


def _legend_columns(panel: Panel) -> int:
    longest = max(map(len, _labels(panel)), default=0)
    return 1 if longest > 26 else 2


def _rows_below(panel: Panel) -> int:
    return -(-len(_labels(panel)) // _legend_columns(panel)) + 1


def _draw_legend(axes: Axes, panel: Panel) -> None:
    # A single line is named by the panel's title; a legend would repeat it.
    if len(_labels(panel)) < 2:
        return
    # Below the axes it hides nothing.
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
        ncols=_legend_columns(panel),
        columnspacing=1.2,
        handlelength=1.8,
    )


def _breathe(axes: Axes, panel: Panel) -> None:
    """The panel's own limits; else a line that is constant to rounding stays one: ±1 %, not its last digits."""
    if panel.ylim is not None:
        axes.set_ylim(*panel.ylim)
    if panel.yscale != "linear" or panel.ylim is not None:
        return
    drawn = [v for line in panel.lines for v in (line.y, line.low, line.high) if v is not None]
    values = np.concatenate([np.ravel(np.asarray(v, dtype=float)) for v in drawn])
    values = values[np.isfinite(values)]
    if values.size == 0:
        return
    middle, spread = float(np.median(values)), float(np.ptp(values))
    if middle != 0 and spread < CONSTANT * abs(middle):
        axes.set_ylim(middle - 0.01 * abs(middle), middle + 0.01 * abs(middle))


def _count(axes: Axes, panel: Panel) -> None:
    """Epochs, layers and numbered cases have no halves: their ticks are whole numbers."""
    x = np.concatenate([np.ravel(np.asarray(line.x, dtype=float)) for line in panel.lines])
    if panel.xscale == "linear" and x.size and np.all(x == np.round(x)):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
