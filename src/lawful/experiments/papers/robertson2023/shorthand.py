"""Small words that the stages share: bands over seeds, rounding-level numbers, names of networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lawful.experiments.claims import Claim
from lawful.experiments.records import Line
from lawful.flows.activations import Floats

PAPER_URL = "arXiv:2306.01870"

NAMES = {
    "linear": "linear",
    "relu": "ReLU",
    "leaky_relu": "leaky ReLU",
    "square": "squared-ReLU",
    "tanh": "tanh",
}
"""Activation -> how a heading spells it."""


def band(label: str, t: Floats, runs: Sequence[Floats], *, style: str = "-", color: int | None = None) -> Line:
    """The median over seeds with the range from the smallest to the largest; one seed has no band."""
    values = np.array(runs)
    middle = np.median(values, axis=0)
    if len(values) == 1:
        return Line(label, t, middle, style=style, color=color)
    return Line(label, t, middle, low=values.min(0), high=values.max(0), style=style, color=color)


def decade(value: float) -> float:
    """The next power of ten above: all that is reproducible of a rounding-level number.

    >>> decade(3.1e-15), decade(0.0)
    (1e-14, 0.0)
    """
    return 0.0 if value == 0 or not math.isfinite(value) else 10.0 ** math.ceil(math.log10(value))


def negligible(id: str, source: str, statement: str, measured: float, bound: float, *, corrects: bool = False) -> Claim:
    """The claim that something is zero up to rounding or solver error: ``measured ≤ bound``, measured as a decade."""
    seen = min(decade(measured), bound) if measured <= bound else measured
    return Claim.at_most(id, source, statement, seen, bound, corrects=corrects)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The range of a few numbers, to two significant digits: "3.9–6.0"."""
    low, high = (f"{value:.{digits}g}" for value in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"
