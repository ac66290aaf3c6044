"""Section 2: the drift of gradient descent at a fixed time is O(lr), and exactly a sum of squared steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lawful.experiments.claims import Claim
from lawful.experiments.paper import Progress
from lawful.experiments.papers.du2018.networks import POINTS, ROUNDING, gaps, problem, size
from lawful.experiments.papers.du2018.settings import Settings
from lawful.experiments.papers.robertson2023.shorthand import NAMES, band, negligible
from lawful.experiments.records import Figure, Line, Panel, Section
from lawful.flows.activations import Floats
from lawful.flows.descent import descend
from lawful.flows.field import Field


@dataclass(frozen=True)
class Descent:
    """Gradient descent of one network: the change of every layer difference, and what the steps explain of it."""

    t: Floats
    change: Floats
    remainder: float


def descent(field: Field, lr: float, steps: int) -> Descent:
    """‖W_i‖² − ‖W_{i+1}‖² at every record, and its change minus Σ ‖Δ_i‖² − ‖Δ_{i+1}‖² per neuron, relative."""
    network = field.network
    every = max(1, steps // POINTS)
    width = [w.shape[0] for w in network.weights[:-1]]
    booked = [np.zeros(k) for k in width]
    books: list[list[Floats]] = []

    def observe(step: int, theta: Floats, delta: Floats) -> None:
        if step % every == 0:
            books.append([b.copy() for b in booked])
        D, _ = network.unpack(delta)
        for i in range(len(booked)):
            booked[i] += (D[i] ** 2).sum(1) - (D[i + 1] ** 2).sum(0)

    run = descend(field, lr, steps, record_every=every, observe=observe)
    books.append([b.copy() for b in booked])
    found = [np.diagonal(gap - gap[0], axis1=1, axis2=2) for gap in gaps(network, run.theta)]
    scale = size(network)
    left = max(float(np.abs(q - np.array([b[i] for b in books])).max()) / scale for i, q in enumerate(found))
    return Descent(run.t, np.array([q.sum(1) for q in found]) / scale, left)


def stage(settings: Settings, seed: int, progress: Progress) -> Section:
    """The drift of gradient descent at a fixed time, at lr, lr/2, lr/4 and lr/8."""
    halvings = (1, 2, 4, 8)
    claims, panels, arrays = [], [], {}
    for at, activation in enumerate(("linear", "relu")):
        drifts, left = [], 0.0
        for number in range(settings.seeds):
            progress.update((at + number / settings.seeds) / 2, f"{NAMES[activation]} network, draw {number}")
            field = problem(settings, seed, number, activation)
            runs = [descent(field, settings.lr / h, settings.steps * h) for h in halvings]
            drifts.append([float(np.abs(run.change).max()) for run in runs])
            left = max(left, *(run.remainder for run in runs))
        rates = settings.lr / np.array(halvings)
        exponent = slope(rates, np.median(drifts, axis=0))
        arrays[f"{activation}.drift"] = np.array(drifts)
        name = NAMES[activation]
        claims += [
            Claim.close(f"steps.{activation}.order", "Section 2", f"{name} network: at a fixed time layers leave "
                        f"balance "
                        "by O(lr): exponent of the largest drift as lr → 0.", exponent, 1.0, abs=0.1),
            negligible(f"steps.{activation}.exact", "Section 2", f"{name} network: the drift of every neuron is "
                        f"exactly "
                       "the sum over steps of |step of its inputs|² − |step of its outputs|² (relative remainder).",
                       left, ROUNDING, corrects=False),
        ]  # fmt: skip
        panels.append(
            Panel(
                f"{name} network",
                "learning rate",
                "largest drift / max ‖W(0)‖²",
                (
                    band("measured", rates, drifts, style="o-"),
                    Line("proportional", rates, np.median(drifts, axis=0)[-1] * rates / rates[-1], style="--"),
                ),
            )
        )
    return Section(
        id="steps",
        title="Finite steps: the drift is O(lr), and exact",
        paper_says="With a small step size layers stay approximately balanced; the discretisation error is $O(\\eta)$.",
        measured=(
            "The drift at a fixed time is of order one in the learning rate, and nothing about it is approximate: it "
            "is "
            "the difference of the squared steps, summed."
        ),
        equations=(
            r"\|W_i[j,:]\|^2-\|W_{i+1}[:,j]\|^2\Big|_0^T=\sum_{s<T}\|\Delta_sW_i[j,:]\|^2-\|\Delta_sW_{i+1}[:,j]\|^2",
        ),
        claims=claims,
        figures=(
            Figure(
                "du-steps",
                "The drift at a fixed time against the learning rate",
                "Largest over layers and time; median and range over draws.",
                panels,
            ),
        ),
        arrays=arrays,
    )


def slope(x: Sequence[float] | Floats, y: Sequence[float] | Floats) -> float:
    """The exponent p of y ~ x^p as x → 0 from the two smallest x pairs, extrapolated: 2·p₂ − p₁.

    >>> x = np.array([0.4, 0.2, 0.1])
    >>> round(slope(x, x**2), 9)
    2.0
    """
    pairs = np.diff(np.log(np.asarray(y, dtype=float))) / np.diff(np.log(np.asarray(x, dtype=float)))
    return float(2 * pairs[-1] - pairs[-2])
