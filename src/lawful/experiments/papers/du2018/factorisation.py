"""Theorems 3.1 and 3.2: gradient descent on ½‖UVᵀ − M‖² needs no balancing term."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lawful.experiments.claims import Claim
from lawful.experiments.paper import Progress
from lawful.experiments.papers.du2018.networks import POINTS
from lawful.experiments.papers.du2018.settings import Settings
from lawful.experiments.papers.robertson2023.shorthand import band
from lawful.experiments.records import Figure, Panel, Section
from lawful.flows.activations import Floats


@dataclass(frozen=True)
class Factorisation:
    """Gradient descent on ½‖UVᵀ − M‖²_F: loss and ‖UᵀU − VᵀV‖_F over the steps."""

    loss: Floats
    gap: Floats


def factorise(M: Floats, U: Floats, V: Floats, lr: float, num_steps: int) -> Factorisation:
    """U ← U − lr (UVᵀ − M) V and V ← V − lr (UVᵀ − M)ᵀ U, both from the old pair.

    >>> run = factorise(np.array([[4.0]]), np.array([[1.0]]), np.array([[1.0]]), 0.1, 100)
    >>> bool(run.loss[-1] < 1e-12), float(run.gap[-1])
    (True, 0.0)
    """
    loss, gap = [], []
    for _ in range(num_steps + 1):
        E = U @ V.T - M
        loss.append(0.5 * float((E**2).sum()))
        gap.append(float(np.linalg.norm(U.T @ U - V.T @ V)))
        U, V = U - lr * E @ V, V - lr * E.T @ U
    return Factorisation(np.array(loss), np.array(gap))


def stage(settings: Settings, seed: int, progress: Progress) -> Section:
    """Small balanced starts against large unbalanced ones; rank 2 and rank 1."""
    lr, num = settings.factor_lr, settings.factor_steps
    runs: dict[str, list[Factorisation]] = {"small": [], "unbalanced": [], "rank 1": []}
    for number in range(settings.seeds):
        progress.update(number / settings.seeds, f"draw {number}")
        rng = np.random.default_rng([seed, number, 7])
        left, right = (np.linalg.qr(rng.standard_normal((settings.size, 2)))[0] for _ in range(2))
        M = left @ np.diag([1.0, 0.5]) @ right.T
        U, V = (settings.small * rng.standard_normal((settings.size, 2)) for _ in range(2))
        runs["small"].append(factorise(M, U, V, lr, num))
        runs["unbalanced"].append(factorise(M, U / settings.small, V, lr, num))
        M1 = left[:, :1] @ right[:, :1].T
        runs["rank 1"].append(factorise(M1, U[:, :1], V[:, :1], lr, num))
    grown = max(float(r.gap.max()) for r in runs["small"])
    # Σ lr‖∇‖² ≤ 2 (loss at the start), and a step moves UᵀU − VᵀV by at most its squared length lr²‖∇‖²
    room = max(float((r.gap.max() - r.gap[0]) / (2 * lr * r.loss[0])) for r in runs["small"])
    claims = [
        Claim.at_most("factor.small.loss", "Theorem 3.1", "From a small random start gradient descent without any "
                      "balancing term reaches the global minimum: loss at the end, largest over draws.",
                      max(float(r.loss[-1]) for r in runs["small"]), 1e-12),
        Claim.at_most("factor.small.balance", "Theorem 3.1", "On the way the two factors stay balanced: largest growth "
                      "of |UᵀU − VᵀV| over 2·lr·(loss at the start), the most that descent allows.", room, 1.0),
        Claim.at_least("factor.unbalanced.balance", "Section 4", "From an unbalanced start they stay unbalanced: "
                       "smallest |UᵀU − VᵀV| at the end relative to the start.",
                       min(float(r.gap[-1] / r.gap[0]) for r in runs["unbalanced"]), 0.5),
        Claim.at_most("factor.rank1.rate", "Theorem 3.2", "In rank one, with a constant step, the loss falls at a "
                    "linear"
                      " rate: largest factor per step while it is between 1e-6 and 1e-16, against 1 − lr·|M|.",
                      max(_largest_factor(r.loss) for r in runs["rank 1"]), 1 - lr),
    ]  # fmt: skip
    index = np.unique(np.linspace(0, num, POINTS).astype(int))
    floor = 1e-20
    panels = [
        Panel("loss", "step", "½‖UVᵀ − M‖²", [
            band(name, index, [np.maximum(r.loss[index], floor) for r in group]) for name, group in runs.items()
        ], yscale="log"),
        Panel("balance", "step", "‖UᵀU − VᵀV‖", [
            band(name, index, [r.gap[index] for r in group]) for name, group in runs.items()
        ], yscale="log"),
    ]  # fmt: skip
    return Section(
        id="factorisation",
        title="Matrix factorisation needs no balancing term",
        paper_says=(
            "For $\\min\\frac12\\|UV^T-M\\|_F^2$ gradient descent from a small random start stays balanced and "
            "converges "
            "to a global minimum without the usual term $\\|U^TU-V^TV\\|_F^2$ (Theorem 3.1); for rank one with a "
            "constant step at a linear rate (Theorem 3.2)."
        ),
        measured=(
            f"With the constant step {lr:g} (the paper's Theorem 3.1 asks for a decreasing one) all {settings.seeds} "
            f"draws reach the minimum, with $\\|U^TU-V^TV\\|\\le{grown:.1e}$ all along. What imbalance there was at "
            f"the "
            "start stays."
        ),
        equations=(r"\frac{d}{dt}\left(U^TU-V^TV\right)=0",),
        claims=claims,
        figures=(
            Figure(
                "du-factorisation",
                "Gradient descent on a factorisation",
                "Small: both factors small; unbalanced: U of order one. Median and range over draws; losses below "
                "1e-20 are drawn there.",
                panels,
            ),
        ),
    )


def _largest_factor(loss: Floats) -> float:
    """Of loss(s + 1) / loss(s) while the loss is between 1e-6 and 1e-16; NaN when it never gets there."""
    tail = np.nonzero((loss[:-1] < 1e-6) & (loss[:-1] > 1e-16))[0]
    return float((loss[tail + 1] / loss[tail]).max()) if len(tail) else math.nan
