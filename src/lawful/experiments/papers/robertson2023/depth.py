"""Theorem 5.1 in depth: every neuron of every hidden layer, with one output and with several."""

from __future__ import annotations

import numpy as np

from lawful.experiments.claims import Claim
from lawful.experiments.paper import Progress
from lawful.experiments.papers.robertson2023.laboratory import (
    ROUNDING,
    SMOOTH_TOLERANCE,
    aligned_field,
    data,
    descent,
    every,
    flow,
    laws,
    record_times,
    stated_network,
)
from lawful.experiments.papers.robertson2023.settings import Settings
from lawful.experiments.papers.robertson2023.shorthand import NAMES, negligible
from lawful.experiments.records import Figure, Line, Panel, Section
from lawful.flows.activations import ACTIVATIONS, Floats
from lawful.flows.field import Field

_STYLES = ("--", ":", "-.", "-")
"""By depth modulo 4."""


def stage(settings: Settings, seed: int, progress: Progress) -> Section:
    """Theorem 5.1 along the flow of networks of depth 3 to 5, one and several outputs."""
    depths = sorted({3, 4, 5, settings.depth} - {2})
    nets = [
        (L, m, name) for name in settings.activations for L in depths for m in sorted({1, max(3, settings.outputs)})
    ]
    claims: list[Claim] = []
    panels: dict[str, list[Line]] = {name: [] for name in settings.activations}
    lines: list[str] = []
    arrays: dict[str, Floats] = {}
    for at, (L, m, name) in enumerate(nets):
        progress.update(at / len(nets), f"depth {L}, {m} outputs, {NAMES[name]}")
        field = aligned_field(stated_network(settings, seed, 0, name, L, m), data(settings, seed, 0, m))
        claim, residual_lines = _deep(settings, field, L, m, name, arrays)
        claims.append(claim)
        if m == 1:
            panels[name].extend(residual_lines)
        lines.append(f"{NAMES[name]}, {L} layers, {m} outputs: {claim.measured:.0e}")
    return Section(
        id="depth",
        title="Theorem 5.1 in depth: every hidden layer, one and several outputs",
        paper_says="The law holds layer by layer in multi-layer networks with a scalar output.",
        measured=(
            "Every hidden layer keeps its quantity, and every neuron of it; a scalar output is not needed for the law, "
            "only for reading alignment from it. Largest relative change of a neuron's quantity in gradient descent "
            "once the ledger is added, and in the flow where that is smooth: " + "; ".join(lines) + "."
        ),
        equations=(r"\langle W_{i+1}(t),B_{i+1}\rangle-\tfrac12\|W_i(t)\|^2=\text{const},\qquad i=1,\dots,L-1",),
        claims=claims,
        figures=(
            Figure(
                "depth",
                "Every hidden layer of deeper networks",
                "What discrete steps, with the lr as set, take from each hidden layer's quantity, relatively.",
                [
                    Panel(f"{NAMES[name]} networks", "time t = lr · step", "1 − q(t) / q(0)", tuple(group))
                    for name, group in panels.items()
                ],
            ),
        ),
        arrays=arrays,
    )


def _deep(
    settings: Settings, field: Field, L: int, m: int, name: str, arrays: dict[str, Floats]
) -> tuple[Claim, list[Line]]:
    stepped = descent(field, settings.lr, settings.steps, every(settings))
    found = laws(field, stepped.trajectory.theta)
    residual = max(
        float(np.abs(q - q[0] + ledger).max()) / scale
        for q, ledger, scale in zip(found.neurons, stepped.ledger, found.neuron_scales, strict=True)
    )
    sigma = ACTIVATIONS[name]
    label = f"depth.{name}.layers{L}-outputs{m}"
    arrays[f"{name}.layers{L}.outputs{m}"] = np.array(found.layers)
    curves = [
        Line(f"{L} layers, hidden {i + 1}", record_times(settings), 1 - q / q[0], style=_STYLES[L % 4], color=i)
        for i, q in enumerate(found.layers)
    ]
    if sigma.degree is None:
        statement = f"{NAMES[name]} has no law: after the ledger a neuron's quantity still moves by (relative)"
        return Claim.at_least(label, "Theorem 5.1", statement, residual, 1e6 * ROUNDING), curves
    drift, bound = residual, ROUNDING
    if sigma.smooth:
        drift, bound = max(residual, laws(field, flow(field, settings).theta).neuron_drift()), SMOOTH_TOLERANCE
    statement = (
        f"{NAMES[name]} network, {L} layers, {m} output{'s' if m > 1 else ''}: every neuron of every hidden layer "
        f"keeps its law ({'flow and ' if sigma.smooth else ''}discrete steps with ledger)."
    )
    return negligible(label, "Theorem 5.1", statement, drift, bound), curves
