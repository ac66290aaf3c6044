"""The networks of the first two stages, and the layer differences of Theorems 2.1 and 2.2."""

from __future__ import annotations

import numpy as np

from lawful.experiments.papers.du2018.settings import Settings
from lawful.flows.activations import Floats
from lawful.flows.field import Field
from lawful.flows.network import Network
from lawful.rules.backprop import Backprop

ROUNDING = 1e-12
"""Relative remainder allowed to an identity that holds exactly at every step."""
POINTS = 200
"""Recorded intervals of a run (fewer when it has fewer steps)."""


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


def size(network: Network) -> float:
    """What a drift is relative to: the largest ‖W_i‖² at the start."""
    return max(float((w**2).sum()) for w in network.weights)
