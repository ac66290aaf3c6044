"""Theorem 5.1 in discrete time: the order of the drift in the step size, and the ledger that accounts for all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lawful.experiments.claims import Claim
from lawful.experiments.paper import Progress
from lawful.experiments.papers.robertson2023.laboratory import (
    ROUNDING,
    Laws,
    aligned_field,
    data,
    descent,
    every,
    laws,
    stated_network,
)
from lawful.experiments.papers.robertson2023.settings import Settings
from lawful.experiments.papers.robertson2023.shorthand import NAMES, band, negligible
from lawful.experiments.records import Figure, Line, Panel, Section
from lawful.flows.activations import ACTIVATIONS, Floats

SLOPE_TOLERANCE = 0.1
"""Tells order 1 from orders 0 and 2, whatever is left of the expansion in lr after one extrapolation."""


def stage(settings: Settings, seed: int, progress: Progress) -> Section:
    """The drift of every layer and neuron: in the flow none, in discrete time of order lr and exactly the ledger."""
    rates = [settings.lr / 2**k for k in range(3)]
    sweeps: dict[str, list[Sweep]] = {}
    for activation in settings.activations:
        sweeps[activation] = []
        for number in range(settings.seeds):
            done = sum(map(len, sweeps.values())) / (settings.seeds * len(settings.activations))
            progress.update(done, f"{NAMES[activation]} network, seed {number}")
            sweeps[activation].append(sweep(settings, seed, number, activation, rates))
    lawful = {name: group for name, group in sweeps.items() if ACTIVATIONS[name].degree is not None}
    return Section(
        id="law",
        title="Theorem 5.1 in discrete time: slopes and the ledger",
        paper_says=(
            "Along the flow of feedback alignment each layer of a homogeneous network keeps "
            "$\\langle W_{i+1},B_{i+1}\\rangle-\\frac12\\|W_i\\|^2$. Discrete steps follow it approximately."
        ),
        measured=_measured(sweeps),
        equations=(
            r"q_j=k\,\langle W_{i+1}[:,j],B_{i+1}[:,j]\rangle-\tfrac12\|W_i[j,:]\|^2,\qquad \dot q_j=0",
            r"q_j(T)=q_j(0)-\tfrac12\sum_{s<T}\|\Delta_s W_i[j,:]\|^2\quad\text{(exact, any learning rate)}",
        ),
        claims=[claim for name, group in lawful.items() for claim in _claims(name, group, rates)]
        + [_violation(name, group) for name, group in sweeps.items() if name not in lawful],
        figures=(_slopes(sweeps, rates), _ledger(sweeps)),
        arrays={
            key: value
            for name, group in sweeps.items()
            for key, value in {
                f"{name}.lr": np.array(rates),
                f"{name}.drift": np.array([s.drifts for s in group]),
                f"{name}.neurons": np.array([s.laws[0].neurons[0] for s in group]),
                f"{name}.ledger": np.array([s.ledger for s in group]),
            }.items()
        },
    )


@dataclass(frozen=True)
class Sweep:
    """The same initial network trained to the same time with several learning rates.

    Attributes:
        t: times of the records of the largest learning rate.
        laws: Theorem 5.1's terms per learning rate.
        ledger: of the largest learning rate: Σ ½‖Δ‖² per neuron of the first layer, (T, width).
        steps: number of steps per learning rate.
        residual: largest |q_j(t) − q_j(0) + ledger_j(t)|, relative, over neurons, layers, times and learning rates.
        layer_residual: the same for the layer sums.
    """

    t: Floats
    laws: list[Laws]
    ledger: Floats
    steps: list[int]
    residual: float
    layer_residual: float

    @property
    def drifts(self) -> Floats:
        """Relative drift of the first layer's quantity at the final time, per learning rate."""
        return np.array([abs(q.layers[0][-1] - q.layers[0][0]) / q.layer_scales[0] for q in self.laws])

    @property
    def neuron_drifts(self) -> Floats:
        """The same for each neuron of the first layer, (learning rates, width)."""
        return np.array([np.abs(q.neurons[0][-1] - q.neurons[0][0]) / q.neuron_scales[0] for q in self.laws])


def sweep(settings: Settings, seed: int, number: int, activation: str, rates: Sequence[float]) -> Sweep:
    """Train with each learning rate to the time that ``steps`` steps of the first reach."""
    field = aligned_field(stated_network(settings, seed, number, activation), data(settings, seed, number))
    runs = [descent(field, lr, settings.steps * 2**k, every(settings) * 2**k) for k, lr in enumerate(rates)]
    found = [laws(field, run.trajectory.theta) for run in runs]
    pairs = [
        (q, ledger, scale, q.sum(1), layer_scale)
        for law, run in zip(found, runs, strict=True)
        for q, ledger, scale, layer_scale in zip(
            law.neurons, run.ledger, law.neuron_scales, law.layer_scales, strict=True
        )
    ]
    return Sweep(
        t=runs[0].trajectory.t,
        laws=found,
        ledger=runs[0].ledger[0],
        steps=[settings.steps * 2**k for k in range(len(rates))],
        residual=max(float(np.abs(q - q[0] + ledger).max()) / scale for q, ledger, scale, _, _ in pairs),
        layer_residual=max(
            float(np.abs(total - total[0] + ledger.sum(1)).max()) / scale for _, ledger, _, total, scale in pairs
        ),
    )


def slope(x: Sequence[float], y: Floats) -> float:
    """The exponent p of y ~ x^p as x → 0, from y at x, x/2 and x/4.

    The exponent between neighbours is p + O(x), half as far from p in the second pair: twice that minus the first.

    >>> x = np.array([0.4, 0.2, 0.1])
    >>> round(slope(x, x * (1 + x)), 2), round(slope(x, x**2), 12)
    (1.03, 2.0)
    """
    first, second = np.diff(np.log(y)) / np.diff(np.log(np.asarray(x)))
    return float(2 * second - first)


def _claims(name: str, group: list[Sweep], rates: Sequence[float]) -> list[Claim]:
    spelled = NAMES[name]
    drift = np.median([s.drifts for s in group], axis=0)
    per_step = drift / np.array(group[0].steps)
    neuron = np.median([np.median(s.neuron_drifts, axis=1) for s in group], axis=0)
    rise = max(
        float(np.diff(q, axis=0).max()) / scale
        for s in group
        for law in s.laws
        for q, scale in zip(law.neurons, law.neuron_scales, strict=True)
    )
    return [
        Claim.close(
            f"law.{name}.slope",
            "Theorem 5.1",
            f"The {spelled} network's drift at a fixed time is of order lr: exponent of the layer's drift.",
            slope(rates, drift),
            1.0,
            abs=SLOPE_TOLERANCE,
        ),
        Claim.close(
            f"law.{name}.slope-neuron",
            "Theorem 5.1",
            f"The same exponent for the median neuron of the {spelled} network.",
            slope(rates, neuron),
            1.0,
            abs=SLOPE_TOLERANCE,
        ),
        Claim.close(
            f"law.{name}.slope-per-step",
            "Theorem 5.1",
            f"The {spelled} network's mean drift per step is of order lr^2: exponent.",
            slope(rates, per_step),
            2.0,
            abs=SLOPE_TOLERANCE,
        ),
        negligible(
            f"law.{name}.ledger-layer",
            "Theorem 5.1",
            f"Corrected by the ledger, every layer's law holds to rounding for the {spelled} network at every lr.",
            max(s.layer_residual for s in group),
            ROUNDING,
        ),
        negligible(
            f"law.{name}.ledger-neuron",
            "Theorem 5.1",
            f"Corrected by the ledger, every neuron's law holds to rounding for the {spelled} network at every lr.",
            max(s.residual for s in group),
            ROUNDING,
        ),
        Claim.true(
            f"law.{name}.one-signed",
            "Theorem 5.1",
            f"The {spelled} network's finite steps only ever lower the quantity, neuron by neuron (up to rounding).",
            rise <= ROUNDING,
        ),
    ]


def _violation(name: str, group: list[Sweep]) -> Claim:
    return Claim.at_least(
        f"law.{name}.no-ledger",
        "Theorem 5.1",
        f"{NAMES[name]} has no law: what remains after the ledger is no rounding (relative, per neuron).",
        min(s.residual for s in group),
        1e6 * ROUNDING,
    )


def _measured(sweeps: dict[str, list[Sweep]]) -> str:
    parts = []
    for name, group in sweeps.items():
        drift = np.median([s.drifts for s in group], axis=0)
        residual = max(s.residual for s in group)
        parts.append(
            f"{NAMES[name]}: halving lr twice takes the relative drift of the layer from {drift[0]:.1e} to "
            f"{drift[-1]:.1e}; with the ledger added, the worst neuron is off by {residual:.0e}."
        )
    parts.append("The law holds neuron by neuron, which is stronger than the paper's sum over a layer.")
    return "\n\n".join(parts)


def _slopes(sweeps: dict[str, list[Sweep]], rates: Sequence[float]) -> Figure:
    x = np.array(rates)
    panels = []
    for name, group in sweeps.items():
        drifts = [s.drifts for s in group]
        guide = np.median(drifts, axis=0)[0] * x / x[0]
        per_step = [s.drifts / np.array(s.steps) for s in group]
        guide2 = np.median(per_step, axis=0)[0] * (x / x[0]) ** 2
        lines = (
            band("at the final time", x, drifts, style="o-", color=0),
            Line("∝ lr", x, guide, style=":", color=0),
            band("mean per step", x, per_step, style="o-", color=1),
            Line("∝ lr²", x, guide2, style=":", color=1),
        )
        panels.append(Panel(f"{NAMES[name]} network", "learning rate", "relative drift", lines, "log", "log"))
    return Figure(
        "drift",
        "The drift against the learning rate",
        "Layer sums; median over seeds, full range; dotted: exact powers.",
        panels,
    )


def _ledger(sweeps: dict[str, list[Sweep]]) -> Figure:
    panels = []
    for name, group in sweeps.items():
        first = group[0]
        q = first.laws[0].neurons[0]
        scale = first.laws[0].neuron_scales[0]
        raw = np.abs(q - q[0]).max(1) / scale
        kept = np.abs(q - q[0] + first.ledger).max(1) / scale
        lines = (
            Line("as it is", first.t[1:], np.maximum(raw[1:], 1e-17)),
            Line("ledger added", first.t[1:], np.maximum(kept[1:], 1e-17)),
        )
        panels.append(Panel(f"{NAMES[name]} network", "time", "worst neuron's |q(t) − q(0)|", lines, yscale="log"))
    return Figure(
        "ledger",
        "The worst neuron's law before and after the ledger",
        "First seed, lr as set. The ledger is the running sum of ½‖step‖² of the neuron's incoming weights.",
        panels,
    )
