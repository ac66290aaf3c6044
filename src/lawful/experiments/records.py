"""What an experiment hands to the reports: lines, panels, figures and sections; data only, no drawing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lawful.errors import SettingError
from lawful.experiments.claims import Claim

Scale: TypeAlias = Literal["linear", "log", "symlog"]

STYLE = re.compile(r"(?=.)(?P<marker>[o.xs^v+D*]?)(?P<stroke>-|--|-\.|:|)")


@dataclass(frozen=True)
class Line:
    """One curve ``y(x)``, with a band ``[low, high]`` over seeds.

    Args:
        label: Its name in the legend; empty leaves it out of the legend.
        x: Abscissae (k,).
        y: Ordinates (k,).
        low: Lower edge of the band (k,), or None.
        high: Upper edge of the band (k,), or None.
        style: A stroke (``"-"``, ``"--"``, ``"-."``, ``":"``), a marker (one of ``o.xs^v+D*``), or a marker and a
            stroke (``"o-"``).
        color: Index into the palette; None takes the line's place in its panel.
        opacity: Of the band, 0 to 1.
    """

    label: str
    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    style: str = "-"
    color: int | None = None
    opacity: float = 0.2

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise SettingError(f"line {self.label!r}: expected both edges of a band or none; got one")
        if not STYLE.fullmatch(self.style):
            raise SettingError(
                f"line {self.label!r}: expected a style such as '-', '--', 'o' or 'o-'; got {self.style!r}"
            )
        shape = np.shape(self.x)
        for name, values in (("y", self.y), ("low", self.low), ("high", self.high)):
            if values is not None and np.shape(values) != shape:
                raise SettingError(
                    f"line {self.label!r}: expected {name} of shape {shape} as x; got {np.shape(values)}"
                )


@dataclass(frozen=True)
class Panel:
    """One pair of axes; labels carry units, ``note`` is one line under the title, ``ylim`` fixes the ordinates."""

    title: str
    xlabel: str
    ylabel: str
    lines: Sequence[Line]
    xscale: Scale = "linear"
    yscale: Scale = "linear"
    note: str = ""
    ylim: tuple[float, float] | None = None


@dataclass(frozen=True)
class Figure:
    """Panels side by side under one title; ``id`` is the name of its files, the caption says what to see."""

    id: str
    title: str
    caption: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Table:
    """Rows of words and numbers in print, under one line of headings; the caption says what to see."""

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """The outcome of one stage: what the paper says beside what was measured.

    Args:
        id: Short name, as in the addresses of the report.
        title: Its heading.
        paper_says: What the source states; plain text, blank lines part paragraphs, ``$…$`` is LaTeX.
        measured: What the run found; written like ``paper_says``.
        equations: Displayed formulas in LaTeX.
        claims: The claims measured here.
        figures: The figures drawn from this stage.
        tables: Its tables.
        arrays: Trajectories by name, kept as ``stages/<id>/trajectories.npz``.
    """

    id: str
    title: str
    paper_says: str
    measured: str
    equations: Sequence[str] = ()
    claims: Sequence[Claim] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    arrays: Mapping[str, NDArray] = field(default_factory=dict)
