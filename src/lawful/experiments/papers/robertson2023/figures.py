"""Figures 1 and 2: the ratio of Theorem 5.1's quantity to its start, and the losses, as flow and in discrete steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lawful.experiments.claims import Claim
from lawful.experiments.paper import Progress
from lawful.experiments.papers.robertson2023.laboratory import (
    ROUNDING,
    SMOOTH_TOLERANCE,
    Descent,
    Laws,
    aligned_field,
    data,
    descent,
    every,
    feedback,
    flow,
    laws,
    stated_network,
)
from lawful.experiments.papers.robertson2023.settings import Settings
from lawful.experiments.papers.robertson2023.shorthand import NAMES, band, negligible
from lawful.experiments.records import Figure, Panel, Section
from lawful.flows.activations import ACTIVATIONS, Floats
from lawful.flows.field import Field
from lawful.flows.problem import Trajectory


@dataclass(frozen=True)
class Run:
    """One network from one seed: its flow and its gradient descent at the same times."""

    field: Field
    flow: Trajectory
    descent: Descent
    flow_laws: Laws
    descent_laws: Laws

    def error_bound(self, *, neurons: bool) -> float:
        """What the solver's own error may do to a law, relatively: ‖∇q‖₁ · max |θ − exact|, worst layer or neuron."""
        weights, back = self.field.network.weights, feedback(self.field)
        slopes = [np.abs(w).sum(1) + np.abs(b).sum(0) for w, b in zip(weights[:-1], back, strict=True)]
        reach = [s.max() if neurons else s.sum() for s in slopes]
        scales = self.flow_laws.neuron_scales if neurons else self.flow_laws.layer_scales
        return max(float(r) / scale for r, scale in zip(reach, scales, strict=True)) * self.flow.error_estimate


def run(settings: Settings, seed: int, number: int, activation: str) -> Run:
    """Both runs of the ``number``-th draw; the discrete one first, since a diverging lr should be told early."""
    field = aligned_field(stated_network(settings, seed, number, activation), data(settings, seed, number))
    stepped = descent(field, settings.lr, settings.steps, every(settings))
    smooth = flow(field, settings)
    return Run(field, smooth, stepped, laws(field, smooth.theta), laws(field, stepped.trajectory.theta))


def stage(settings: Settings, seed: int, progress: Progress) -> Section:
    """Figures 1 and 2 for the linear and the nonlinear network."""
    runs: dict[str, list[Run]] = {}
    total = settings.seeds * len(settings.activations)
    for activation in settings.activations:
        runs[activation] = []
        for number in range(settings.seeds):
            progress.update(sum(map(len, runs.values())) / total, f"{NAMES[activation]} network, seed {number}")
            runs[activation].append(run(settings, seed, number, activation))
    claims = [claim for name, group in runs.items() for claim in _claims(name, group)]
    arrays = {key: value for name, group in runs.items() for key, value in _arrays(name, group).items()}
    return Section(
        id="figures",
        title="Figures 1 and 2: the conserved quantity and the loss",
        paper_says=(
            "Trained by feedback alignment with $B_2=W_2(0)$, a two-layer linear and a ReLU network keep "
            "$\\langle W_2,B_2\\rangle-\\frac12\\|W_1\\|^2$ close to its start (Figure 1) while the loss falls "
            "(Figure 2)."
        ),
        measured=_measured(settings, runs),
        equations=(
            r"\frac{\langle W_2(t),B_2\rangle-\frac12\|W_1(t)\|_F^2}{\langle W_2(0),B_2\rangle-\frac12\|W_1(0)\|_F^2}="
            r"1",
            r"\mathcal{L}=\frac{1}{2n}\sum_n\|f(x_n)-y_n\|^2,\qquad t=\mathrm{lr}\cdot\mathrm{step}",
        ),
        claims=claims,
        figures=(_figure1(settings, runs), _figure2(settings, runs)),
        arrays=arrays,
    )


def _ratio(quantities: Laws) -> Floats:
    q = quantities.layers[0]
    return q / q[0]


def _figure1(settings: Settings, runs: dict[str, list[Run]]) -> Figure:
    panels = []
    for name, group in runs.items():
        t = group[0].flow.t
        lines = (
            band("flow (lr → 0)", t, [_ratio(r.flow_laws) for r in group]),
            band(f"gradient descent, lr = {settings.lr:g}", t, [_ratio(r.descent_laws) for r in group], style="--"),
        )
        panels.append(Panel(f"{NAMES[name]} network", "time t = lr · step", "ratio q(t) / q(0)", lines))
    return Figure(
        "figure1",
        "Figure 1: Theorem 5.1's quantity, relative to its start",
        "Median over seeds, band from the smallest to the largest. The flow stays at 1; discrete steps leave it by "
        "the ledger, mostly while the loss falls.",
        panels,
    )


def _figure2(settings: Settings, runs: dict[str, list[Run]]) -> Figure:
    floor = 1e-18  # below this the loss is the solver's rounding
    panels = []
    for name, group in runs.items():
        lines = (
            band("flow", group[0].flow.t, [np.maximum(r.flow.loss, floor) for r in group]),
            band(
                f"gradient descent, lr = {settings.lr:g}",
                group[0].flow.t,
                [np.maximum(r.descent.trajectory.loss, floor) for r in group],
                style="--",
            ),
        )
        panels.append(Panel(f"{NAMES[name]} network", "time t = lr · step", "loss", lines, yscale="log"))
    return Figure(
        "figure2",
        "Figure 2: the training loss of the same runs",
        "Median over seeds and full range. Values below 1e-18 are drawn at 1e-18: they are rounding.",
        panels,
    )


def _claims(name: str, group: list[Run]) -> list[Claim]:
    spelled = NAMES[name]
    claims = _flow_claims(name, group)
    if ACTIVATIONS[name].degree is not None:
        worst = max(_ledger_residual(r) for r in group)
        claims.append(
            negligible(
                f"figure1.{name}.discrete",
                "Figure 1",
                f"In discrete steps the {spelled} network's ratio leaves 1 by exactly the ledger, sum of 1/2 |step|^2.",
                worst,
                ROUNDING,
            )
        )
    claims.append(
        Claim.at_most(
            f"figure2.{name}.loss",
            "Figure 2",
            f"The {spelled} network's loss ends below its start: final / initial loss, worst seed, lr as set.",
            max(float(r.descent.trajectory.loss[-1] / r.descent.trajectory.loss[0]) for r in group),
            1.0,
        )
    )
    return claims


def _flow_claims(name: str, group: list[Run]) -> list[Claim]:
    sigma, spelled = ACTIVATIONS[name], NAMES[name]
    layer = max(r.flow_laws.layer_drift() for r in group)
    if sigma.degree is None:
        statement = f"{spelled} is not homogeneous, so there is no law: along the flow the quantity moves by (relative)"
        return [Claim.at_least(f"figure1.{name}.violation", "Theorem 5.1", statement, layer, 100 * SMOOTH_TOLERANCE)]
    claims = []
    for which, drift in (("layer", layer), ("neuron", max(r.flow_laws.neuron_drift() for r in group))):
        bound = SMOOTH_TOLERANCE
        if not sigma.smooth:
            bound = max(bound, *(r.error_bound(neurons=which == "neuron") for r in group))
        statement = (
            f"Along the flow every {which} of the {spelled} network keeps its quantity; bound: the solver's error."
        )
        claims.append(negligible(f"figure1.{name}.{which}", "Theorem 5.1", statement, drift, float(f"{bound:.1e}")))
    return claims


def _ledger_residual(r: Run) -> float:
    q, ledger = r.descent_laws.layers[0], r.descent.ledger[0].sum(1)
    return float(np.abs(q - q[0] + ledger).max()) / r.descent_laws.layer_scales[0]


def _measured(settings: Settings, runs: dict[str, list[Run]]) -> str:
    parts = []
    for name, group in runs.items():
        off = max(float(np.abs(r.descent_laws.layers[0] / r.descent_laws.layers[0][0] - 1).max()) for r in group)
        drift = max(r.flow_laws.layer_drift() for r in group)
        parts.append(
            f"{NAMES[name]}: the flow moves the quantity by at most {drift:.0e} (relative); gradient descent with "
            f"lr = {settings.lr:g} moves the ratio by at most {off:.1e}."
        )
        if ACTIVATIONS[name].degree is None:
            parts.append("That network has no law, and the drift of its flow is no numerical error.")
    return "\n\n".join(parts)


def _arrays(name: str, group: list[Run]) -> dict[str, Floats]:
    return {
        f"{name}.t": group[0].flow.t,
        f"{name}.flow.quantity": np.array([r.flow_laws.layers[0] for r in group]),
        f"{name}.descent.quantity": np.array([r.descent_laws.layers[0] for r in group]),
        f"{name}.flow.loss": np.array([r.flow.loss for r in group]),
        f"{name}.descent.loss": np.array([r.descent.trajectory.loss for r in group]),
    }
