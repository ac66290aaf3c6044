"""Theorems 2.1 and 2.2 and Corollary 2.1: layers stay balanced along the gradient flow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lawful.experiments.claims import Claim
from lawful.experiments.paper import Progress
from lawful.experiments.papers.du2018.networks import gaps, problem, size
from lawful.experiments.papers.du2018.settings import Settings
from lawful.experiments.papers.robertson2023.shorthand import NAMES, band, negligible
from lawful.experiments.records import Figure, Panel, Section
from lawful.flows.field import Field
from lawful.flows.problem import Trajectory
from lawful.flows.solve import solve

FLOW_TOLERANCE = 1e-8
"""Relative drift allowed to a smooth flow: a hundred times DOP853's rtol of 1e-10 per step."""


def stage(settings: Settings, seed: int, progress: Progress) -> Section:
    """Theorems 2.1 and 2.2 and Corollary 2.1 along the gradient flow."""
    claims, panels = [], []
    for at, activation in enumerate(("linear", "relu")):
        runs: list[tuple[Field, Trajectory]] = []
        for number in range(settings.seeds):
            progress.update((at + number / settings.seeds) / 2, f"{NAMES[activation]} network, draw {number}")
            field = problem(settings, seed, number, activation)
            # a network with kinks goes by RK4 with step halving
            runs.append((field, solve(field, settings.lr * settings.steps, step=None if at == 0 else settings.lr)))
        claims += _flow_claims(activation, runs)
        panels.append(_flow_panel(activation, runs))
    return Section(
        id="flow",
        title="Balanced layers along the gradient flow",
        paper_says=(
            "Along the gradient flow every neuron of a homogeneous network keeps "
            "$\\|W_i[j,:]\\|^2-\\|W_{i+1}[:,j]\\|^2$ (Theorem 2.1), so every two neighbouring layers keep "
            "$\\|W_i\\|_F^2-\\|W_{i+1}\\|_F^2$ (Corollary 2.1); a "
            "linear network keeps the whole matrix $W_iW_i^T-W_{i+1}^TW_{i+1}$ (Theorem 2.2)."
        ),
        measured=(
            f"{settings.seeds} draws of a {settings.depth}-layer network each: what is stated to be constant is "
            "constant to the solver's accuracy. The matrix's off-diagonal elements move in a ReLU network, as nothing "
            "says that they should not."
        ),
        equations=(r"\frac{d}{dt}\left(W_iW_i^T-W_{i+1}^TW_{i+1}\right)=0",),
        claims=claims,
        figures=(
            Figure(
                "du-flow",
                "Layer norms move, their differences do not",
                "First hidden layer, change since the start relative to the largest squared norm; median and range "
                "over draws.",
                panels,
            ),
        ),
    )


def _flow_claims(activation: str, runs: Sequence[tuple[Field, Trajectory]]) -> list[Claim]:
    neuron, layer, matrix, bound = 0.0, 0.0, 0.0, FLOW_TOLERANCE
    for field, run in runs:
        scale = size(field.network)
        for gap in gaps(field.network, run.theta):
            moved = np.abs(gap - gap[0]) / scale
            neuron = max(neuron, float(np.diagonal(moved, axis1=1, axis2=2).max()))
            layer = max(layer, float(np.abs(np.trace(gap - gap[0], axis1=1, axis2=2)).max()) / scale)
            matrix = max(matrix, float(moved.max()))
        if not field.network.smooth:
            # |dq| ≤ 2Σ|W||dθ| over the 2·layers of one difference, with the solver's own bound on dθ
            reach = 2 * sum(float(np.abs(w).sum()) for w in field.network.weights) / scale
            bound = max(bound, float(f"{reach * run.error_estimate:.1e}"))
    name = NAMES[activation]
    claims = [
        negligible(f"flow.{activation}.neuron", "Theorem 2.1", f"{name} network: every neuron stays balanced "
                   "(largest relative change; bound: the solver's error).", neuron, bound),
        negligible(f"flow.{activation}.layer", "Corollary 2.1", f"{name} network: neighbouring layers stay balanced "
                   "(largest relative change; bound: the solver's error).", layer, bound),
    ]  # fmt: skip
    if activation == "linear":
        statement = "linear network: whole matrices are conserved (largest relative change of an element)."
        return [*claims, negligible("flow.linear.matrix", "Theorem 2.2", statement, matrix, bound)]
    statement = f"{name} network: the off-diagonal elements are not conserved (largest relative change)."
    return [*claims, Claim.at_least(f"flow.{activation}.off-diagonal", "Theorem 2.2", statement, matrix, 1e-3)]


def _flow_panel(activation: str, runs: Sequence[tuple[Field, Trajectory]]) -> Panel:
    norms, layers, largest = [], [], []
    for field, run in runs:
        scale = size(field.network)
        (first, *_), _ = field.network.unpack(run.theta)
        norm, gap = (first**2).sum((1, 2)), gaps(field.network, run.theta)[0]
        norms.append((norm - norm[0]) / scale)
        layers.append(np.trace(gap - gap[0], axis1=1, axis2=2) / scale)
        off = gap - gap[0]
        largest.append(np.abs(off - np.einsum("tjj->tj", off)[:, :, None] * np.eye(off.shape[1])).max((1, 2)) / scale)
    t = runs[0][1].t
    lines = (
        band("‖W₁‖²", t, norms),
        band("‖W₁‖² − ‖W₂‖²", t, layers, style="--"),
        band("largest off-diagonal element", t, largest, style=":"),
    )
    return Panel(f"{NAMES[activation]} network", "time t", "change / max ‖W(0)‖²", lines)
