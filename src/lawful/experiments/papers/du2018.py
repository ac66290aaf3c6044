"""Du, Hu & Lee 2018: layers trained by backpropagation stay balanced; finite steps move them by O(lr)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from lawful.errors import SettingError
from lawful.experiments.claims import Claim
from lawful.experiments.paper import Paper, Progress
from lawful.experiments.papers.robertson2023.shorthand import NAMES, band, negligible
from lawful.experiments.records import Figure, Line, Panel, Section
from lawful.flows.activations import Floats
from lawful.flows.descent import descend
from lawful.flows.field import Field
from lawful.flows.network import Network
from lawful.flows.problem import Trajectory
from lawful.flows.solve import solve
from lawful.rules.backprop import Backprop

FLOW_TOLERANCE = 1e-8
"""Relative drift allowed to a smooth flow: a hundred times DOP853's rtol of 1e-10 per step."""
ROUNDING = 1e-12
"""Relative remainder allowed to an identity that holds exactly at every step."""
_POINTS = 200
_LIMITS = {"n": (1, 10_000), "d": (1, 1_000), "width": (1, 1_000), "outputs": (1, 1_000), "depth": (2, 12)}
_LIMITS |= {"steps": (8, 1_000_000), "seeds": (1, 1_000), "size": (2, 1_000), "factor_steps": (8, 1_000_000)}


@dataclass(frozen=True)
class Settings:
    """Sizes and step sizes.

    Args:
        n: Samples.
        d: Inputs.
        width: Neurons of each hidden layer.
        outputs: Outputs.
        depth: Weight matrices.
        lr: Step size of the discrete runs on networks; they run to time lr · steps.
        steps: Their number of steps.
        size: M of the factorisation is size × size, of rank 2, with singular values 1 and 1/2.
        factor_lr: Step size of the factorisation.
        factor_steps: Its number of steps.
        small: Standard deviation of the small balanced start.
        seeds: Independent draws.
    """

    n: int = 30
    d: int = 10
    width: int = 12
    outputs: int = 3
    depth: int = 3
    lr: float = 0.02
    steps: int = 1000
    size: int = 20
    factor_lr: float = 0.02
    factor_steps: int = 4000
    small: float = 1e-3
    seeds: int = 5

    def validate(self) -> None:
        """Check ranges.

        Raises:
            SettingError: one line that names the key, the allowed values and what came.
        """
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise SettingError(f"{name} must be an integer from {low} to {high}; got {value!r}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "float" and not (math.isfinite(value) and value > 0):
                raise SettingError(f"{field.name} must be a finite number > 0; got {value!r}")


def gaps(network: Network, theta: Floats) -> list[Floats]:
    """W_iW_iᵀ − W_{i+1}ᵀW_{i+1} per hidden layer along θ (T, D): Theorem 2.2's matrices, (T, width, width).

    Their diagonals are Theorem 2.1's quantities ‖W_i[j,:]‖² − ‖W_{i+1}[:,j]‖², their traces Corollary 2.1's.
    """
    W, _ = network.unpack(theta)
    return [a @ np.swapaxes(a, -1, -2) - np.swapaxes(b, -1, -2) @ b for a, b in zip(W[:-1], W[1:], strict=True)]


def problem(settings: Settings, seed: int, number: int, activation: str) -> Field:
    """A network of fan-in scaled Gaussian weights under backpropagation on a Gaussian linear teacher, κ = 1/n."""
    rng = np.random.default_rng([seed, number])
    X = rng.standard_normal((settings.n, settings.d))
    Y = X @ rng.standard_normal((settings.d, settings.outputs)) / settings.d**0.5
    widths = (settings.d, *[settings.width] * (settings.depth - 1), settings.outputs)
    return Field(Network.random(widths, activation=activation, seed=rng), Backprop(), X, Y, kappa=1 / settings.n)


def _size(network: Network) -> float:
    """What a drift is relative to: the largest ‖W_i‖² at the start."""
    return max(float((w**2).sum()) for w in network.weights)


# -- the flow -------------------------------------------------------------------------------------------------------


def flow(settings: Settings, seed: int, progress: Progress) -> Section:
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
        size = _size(field.network)
        for gap in gaps(field.network, run.theta):
            moved = np.abs(gap - gap[0]) / size
            neuron = max(neuron, float(np.diagonal(moved, axis1=1, axis2=2).max()))
            layer = max(layer, float(np.abs(np.trace(gap - gap[0], axis1=1, axis2=2)).max()) / size)
            matrix = max(matrix, float(moved.max()))
        if not field.network.smooth:
            # |dq| ≤ 2Σ|W||dθ| over the 2·layers of one difference, with the solver's own bound on dθ
            reach = 2 * sum(float(np.abs(w).sum()) for w in field.network.weights) / size
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
        size = _size(field.network)
        (first, *_), _ = field.network.unpack(run.theta)
        norm, gap = (first**2).sum((1, 2)), gaps(field.network, run.theta)[0]
        norms.append((norm - norm[0]) / size)
        layers.append(np.trace(gap - gap[0], axis1=1, axis2=2) / size)
        off = gap - gap[0]
        largest.append(np.abs(off - np.einsum("tjj->tj", off)[:, :, None] * np.eye(off.shape[1])).max((1, 2)) / size)
    t = runs[0][1].t
    lines = (
        band("‖W₁‖²", t, norms),
        band("‖W₁‖² − ‖W₂‖²", t, layers, style="--"),
        band("largest off-diagonal element", t, largest, style=":"),
    )
    return Panel(f"{NAMES[activation]} network", "time t", "change / max ‖W(0)‖²", lines)


# -- finite steps ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Descent:
    """Gradient descent of one network: the change of every layer difference, and what the steps explain of it."""

    t: Floats
    change: Floats
    remainder: float


def descent(field: Field, lr: float, steps: int) -> Descent:
    """‖W_i‖² − ‖W_{i+1}‖² at every record, and its change minus Σ ‖Δ_i‖² − ‖Δ_{i+1}‖² per neuron, relative."""
    network = field.network
    every = max(1, steps // _POINTS)
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
    size = _size(network)
    left = max(float(np.abs(q - np.array([b[i] for b in books])).max()) / size for i, q in enumerate(found))
    return Descent(run.t, np.array([q.sum(1) for q in found]) / size, left)


def steps(settings: Settings, seed: int, progress: Progress) -> Section:
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


# -- matrix factorisation -------------------------------------------------------------------------------------------


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


def factorisation(settings: Settings, seed: int, progress: Progress) -> Section:
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
    index = np.unique(np.linspace(0, num, _POINTS).astype(int))
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


PAPER = Paper(
    id="du2018",
    title="Algorithmic Regularization in Learning Deep Homogeneous Models: Layers are Automatically Balanced",
    citation=(
        "Simon S. Du, Wei Hu and Jason D. Lee, Algorithmic Regularization in Learning Deep Homogeneous Models: Layers "
        "are "
        "Automatically Balanced, NeurIPS 2018, arXiv:1806.00900"
    ),
    settings=Settings,
    quick={"seeds": 2, "steps": 400, "factor_steps": 2000},
    stages={"flow": flow, "steps": steps, "factorisation": factorisation},
)
"""The paper as ``lawful reproduce du2018`` runs it."""
