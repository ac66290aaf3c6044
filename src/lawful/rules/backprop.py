"""Backpropagation, the rule whose feedback weight is the weight itself."""

from __future__ import annotations

from typing import ClassVar

import torch

from lawful.rules.base import Rule
from lawful.types import Array, State


class Backprop(Rule):
    """B = W, with potential Ψ(W) = ½‖W‖²: the gradient, and the balancedness law of Du, Hu & Lee.

    References:
        Du, Hu & Lee, *Algorithmic Regularization in Learning Deep Homogeneous Models: Layers are Automatically
        Balanced*, NeurIPS 2018, Theorem 2.1.
    """

    name: ClassVar[str] = "bp"

    def init(self, weight: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Nothing is stored."""
        return {}

    def feedback(self, weight: Array, state: State) -> Array:
        """W itself."""
        return weight

    def potential(self, weight: Array, state: State) -> Array:
        """½W² per element."""
        return weight * weight / 2

    def __repr__(self) -> str:
        """The call that makes this rule."""
        return "Backprop()"
