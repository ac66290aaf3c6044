import io
import warnings
import xml.etree.ElementTree as ET

import matplotlib.image
import numpy as np
import pytest

from lawful.errors import SettingError
from lawful.experiments.records import Figure, Line, Panel
from lawful.reports.figures import render
from lawful.reports.style import PALETTE

X = np.linspace(0, 10, 60)


def figure(num_lines: int = 2, num_panels: int = 2, **panel: str) -> Figure:
    lines = [
        Line(f"line {k}", X, np.exp(-k * X / 9), np.exp(-k * X / 9) * 0.9, np.exp(-k * X / 9) * 1.1)
        for k in range(num_lines)
    ]
    panels = [Panel(f"Panel {k}", "flow time $t$", "loss", lines, **panel) for k in range(num_panels)]
    return Figure("fig", "A figure", "Its caption.", panels)


@pytest.mark.parametrize("format", ["png", "svg"])
def test_equal_figures_are_equal_bytes(format: str) -> None:
    assert render(figure())[format] == render(figure())[format]


@pytest.mark.parametrize(("num_lines", "num_panels"), [(1, 1), (3, 2), (12, 4)])
def test_any_number_of_lines_and_panels_is_drawn_without_a_warning(num_lines: int, num_panels: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = matplotlib.image.imread(io.BytesIO(render(figure(num_lines, num_panels, yscale="log"))["png"]))
    assert image.ndim == 3 and np.ptp(image) > 0


def test_every_line_has_its_colour_and_no_date() -> None:
    svg = render(figure(3, 1))["svg"].decode()
    ET.fromstring(svg)
    for color in PALETTE[:3]:
        assert color.lower() in svg.lower()
    assert "<dc:date>" not in svg


def test_a_constant_to_rounding_is_drawn_flat() -> None:
    noisy = 5 + 1e-13 * np.sin(X * 99)
    panel = Panel("Law", "t", "q", [Line("q", X, noisy)])
    flat = Panel("Law", "t", "q", [Line("q", X, np.full_like(X, 5.0))])
    images = [matplotlib.image.imread(io.BytesIO(render(Figure("f", "", "", [p]))["png"])) for p in (panel, flat)]
    np.testing.assert_allclose(images[0], images[1], atol=0.05)


@pytest.mark.parametrize("style", ["-", "--", "-.", ":", "o", "o-", "s--", "^:"])
def test_strokes_and_markers(style: str) -> None:
    panel = Panel("Panel", "x", "y", [Line("line", X, X, style=style)])
    assert render(Figure("f", "", "", [panel]))["svg"]


@pytest.mark.parametrize("style", ["", "oo", "-o", "solid"])
def test_other_styles_are_refused_where_they_are_written(style: str) -> None:
    with pytest.raises(SettingError, match="expected a style"):
        Line("line", X, X, style=style)
