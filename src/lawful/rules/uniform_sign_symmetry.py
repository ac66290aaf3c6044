"""Uniform sign symmetry: feedback keeps the sign of every weight and gives all of them one magnitude."""

from __future__ import annotations

from typing import ClassVar

import torch

from lawful.errors import SettingError
from lawful.rules.base import Rule, fan_in
from lawful.rules.scale import check_scale, scale_text
from lawful.rules.signs import signed
from lawful.types import Array, State, namespace


class UniformSignSymmetry(Rule):
    """B = s · sign(W), with potential Ψ(W) = s‖W‖₁ for a fixed s (uSF).

    Args:
        scale: s; by default 1/√fan-in, where the source has 1 and leaves the size to batch normalisation.
        adaptive: take s = mean|W| of the weight as it is now. Then Ψ = ‖W‖₁²/(2N), N the number of weights, is no
            sum over elements, so that ``potential`` is None: only the sum over the layer's neurons is conserved.

    Raises:
        SettingError: a negative or non-finite ``scale``, or a ``scale`` given to an adaptive rule.

    References:
        Liao, Leibo & Poggio, *How Important Is Weight Symmetry in Backpropagation?*, AAAI 2016.
    """

    name: ClassVar[str] = "usf"

    def __init__(self, *, scale: float | None = None, adaptive: bool = False) -> None:
        check_scale("UniformSignSymmetry", scale)
        if adaptive and scale is not None:
            raise SettingError(f"UniformSignSymmetry: an adaptive scale is mean|W|; leave out scale={scale!r}")
        self.scale = scale
        self.adaptive = adaptive

    def init(self, weight: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Store s, a number; nothing when s is recomputed from W."""
        if self.adaptive:
            return {}
        return {"scale": weight.new_tensor(fan_in(weight) ** -0.5 if self.scale is None else self.scale)}

    def feedback(self, weight: Array, state: State) -> Array:
        """The sign of W times s; sign(0) = 0."""
        scale = namespace(weight).abs(weight).mean() if self.adaptive else state["scale"]
        return signed(scale, weight)

    def potential(self, weight: Array, state: State) -> Array | None:
        """s|W| per element, or None when s is recomputed from W."""
        return None if self.adaptive else state["scale"] * namespace(weight).abs(weight)

    def whole_potential(self, weight: Array, state: State) -> Array | None:
        """½ mean|W| · |W| per element, ‖W‖₁²/(2N) in all, for the adaptive s."""
        size = namespace(weight).abs(weight)
        return size.mean() * size / 2 if self.adaptive else None

    def __repr__(self) -> str:
        """The call that makes this rule."""
        return f"UniformSignSymmetry(adaptive={self.adaptive}{scale_text(self.scale)})"
