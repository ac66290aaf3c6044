"""The networks of Section 6, their flow and their gradient descent, and Theorem 5.1's quantity along both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lawful.data.teacher import Regression, gaussian_teacher
from lawful.errors import DivergenceError
from lawful.experiments.papers.robertson2023.settings import Settings
from lawful.flows.activations import Floats
from lawful.flows.descent import descend
from lawful.flows.field import Field
from lawful.flows.network import Network
from lawful.flows.problem import Trajectory
from lawful.flows.solve import solve
from lawful.rules.feedback_alignment import FeedbackAlignment

POINTS = 200
"""Recorded intervals of a run (fewer when it has fewer steps)."""

SMOOTH_TOLERANCE = 1e-8
"""Relative drift allowed to a smooth flow: a hundred times DOP853's rtol of 1e-10 per step, for its accumulation."""

ROUNDING = 1e-12
"""Relative residual allowed to an identity that holds exactly, step by step: rounding over thousands of steps."""


def generator(seed: int, number: int, *stream: int) -> np.random.Generator:
    """The random stream of the ``number``-th draw of a run with this seed."""
    return np.random.default_rng([seed, number, *stream])


def data(settings: Settings, seed: int, number: int, outputs: int | None = None) -> Regression:
    """X ~ N(0, 1), Y = X w*, ‖w*‖ = target_scale."""
    m = settings.outputs if outputs is None else outputs
    return gaussian_teacher(settings.n, settings.d, m, scale=settings.target_scale, rng=generator(seed, number, 0))


def stated_network(
    settings: Settings, seed: int, number: int, activation: str, depth: int | None = None, outputs: int | None = None
) -> Network:
    """W_1 ~ N(0, init_scale²), W_L ~ N(0, 1); the paper has two layers, layers between are N(0, 1/width)."""
    L = settings.depth if depth is None else depth
    m = settings.outputs if outputs is None else outputs
    widths = (settings.d, *([settings.width] * (L - 1)), m)
    scales = (settings.init_scale, *([settings.width**-0.5] * (L - 2)), 1.0)
    return Network.random(widths, activation=activation, init_scale=scales, seed=generator(seed, number, 1))


def aligned_field(network: Network, problem: Regression, rule: FeedbackAlignment | None = None) -> Field:
    """The flow of feedback alignment with B = W(0), as in the paper, on the loss ‖e‖²/(2n): κ = 1/n."""
    chosen = FeedbackAlignment(init="aligned") if rule is None else rule
    return Field(network, chosen, problem.X, problem.Y, kappa=1 / len(problem.X))


def every(settings: Settings) -> int:
    """Steps between two records."""
    return max(1, settings.steps // POINTS)


def record_times(settings: Settings) -> Floats:
    """The flow times at which the discrete run is recorded."""
    stride = every(settings)
    steps = [*range(0, settings.steps, stride), settings.steps]
    return settings.lr * np.array(steps, dtype=np.float64)


def flow(field: Field, settings: Settings) -> Trajectory:
    """θ(t) at the times of the discrete run: DOP853, or RK4 with step halving where the network has kinks."""
    step = None if field.network.smooth else settings.lr
    return solve(field, t_eval=record_times(settings), step=step)


@dataclass(frozen=True)
class Laws:
    """Per hidden layer i: q_j(t) = k⟨W_{i+1}[:,j], B_{i+1}[:,j]⟩ − ½‖W_i[j]‖², in the paper's sign.

    Attributes:
        alignment: k⟨W_{i+1}[:,j], B_{i+1}[:,j]⟩ per layer, each (T, width).
        energy: ½‖W_i[j]‖² per layer, each (T, width).
    """

    alignment: list[Floats]
    energy: list[Floats]

    @property
    def neurons(self) -> list[Floats]:
        """q_j(t) per layer, (T, width)."""
        return [a - e for a, e in zip(self.alignment, self.energy, strict=True)]

    @property
    def layers(self) -> list[Floats]:
        """Theorem 5.1's quantity per layer: Σ_j q_j(t), (T,)."""
        return [q.sum(1) for q in self.neurons]

    @property
    def layer_scales(self) -> list[float]:
        """What a layer's drift is relative to: |⟨W_{i+1}, B_{i+1}⟩| + ½‖W_i‖² at the start."""
        return [float(np.abs(a[0].sum()) + e[0].sum()) for a, e in zip(self.alignment, self.energy, strict=True)]

    @property
    def neuron_scales(self) -> list[float]:
        """What a neuron's drift is relative to: the layer's largest |⟨·,·⟩_j| + ½‖W_i[j]‖² at the start."""
        return [float((np.abs(a[0]) + e[0]).max()) for a, e in zip(self.alignment, self.energy, strict=True)]

    def layer_drift(self) -> float:
        """Largest relative change of a layer's quantity, over layers and time."""
        return max(float(np.abs(q - q[0]).max()) / s for q, s in zip(self.layers, self.layer_scales, strict=True))

    def neuron_drift(self) -> float:
        """Largest relative change of a neuron's quantity, over neurons, layers and time."""
        return max(float(np.abs(q - q[0]).max()) / s for q, s in zip(self.neurons, self.neuron_scales, strict=True))


def degree(network: Network) -> int:
    """The degree k of the activation; 1 where it has none (tanh), so that the would-be law can be shown to fail."""
    return network.sigmas[0].degree or 1


def feedback(field: Field) -> list[Floats]:
    """B_2 … B_L; B_1 is never used."""
    return [state["B"] for state in field.states[1:]]


def laws(field: Field, theta: Floats) -> Laws:
    """Theorem 5.1's terms along a trajectory θ (T, D)."""
    weights, _ = field.network.unpack(theta)
    k = degree(field.network)
    alignment = [k * np.einsum("toj,oj->tj", w, b) for w, b in zip(weights[1:], feedback(field), strict=True)]
    energy = [0.5 * (w**2).sum(2) for w in weights[:-1]]
    return Laws(alignment, energy)


@dataclass(frozen=True)
class Descent:
    """A discrete run and its ledger: Σ over the steps so far of ½‖Δ_i[j]‖², per hidden layer (T, width)."""

    trajectory: Trajectory
    ledger: list[Floats]


def descent(field: Field, lr: float, num_steps: int, record_every: int) -> Descent:
    """Gradient descent under the rule, with the exact finite-step drift of every neuron.

    Raises:
        DivergenceError: the loss left the finite numbers, or ended above ten times its start.
    """
    network = field.network
    sums = [np.zeros(w.shape[0]) for w in network.weights[:-1]]
    rows: list[list[Floats]] = []

    def observe(step: int, theta: Floats, delta: Floats) -> None:
        if step % record_every == 0:
            rows.append([s.copy() for s in sums])
        changes = network.unpack(delta)[0]
        for i in range(len(sums)):
            sums[i] += 0.5 * np.einsum("ji,ji->j", changes[i], changes[i])

    trajectory = descend(field, lr, num_steps, record_every=record_every, observe=observe)
    rows.append([s.copy() for s in sums])
    if trajectory.loss[-1] > 10 * trajectory.loss[0]:
        raise DivergenceError(
            f"descent with lr {lr:.3g} diverged: the loss rose from {trajectory.loss[0]:.3g} to "
            f"{trajectory.loss[-1]:.3g} in {num_steps} steps; choose a smaller lr (--set lr={lr / 4:.2g})"
        )
    return Descent(trajectory, [np.array([row[i] for row in rows]) for i in range(len(sums))])
