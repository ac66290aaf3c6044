"""Sign symmetry with fixed random magnitudes: feedback keeps the sign of every weight and nothing of its size."""

from __future__ import annotations

from typing import ClassVar

import torch

from lawful.rules.base import Rule, draw
from lawful.rules.scale import check_scale, scale_text
from lawful.rules.signs import signed
from lawful.types import Array, State, namespace


class FixedMagnitudeSignSymmetry(Rule):
    """B = M ⊙ sign(W) with fixed random M ≥ 0, and potential Ψ(W) = Σ M ⊙ |W| (frSF).

    M is uniform on [0, √3·scale]: its root mean square is ``scale``, and the source's U(0, 1) is scale = 1/√3.

    Args:
        seed: M is a function of (seed, dotted parameter name).
        scale: root mean square of M's elements (default 1/√fan-in).

    Raises:
        SettingError: a negative or non-finite ``scale``.

    References:
        Liao, Leibo & Poggio, *How Important Is Weight Symmetry in Backpropagation?*, AAAI 2016.
    """

    name: ClassVar[str] = "frsf"

    def __init__(self, *, seed: int = 0, scale: float | None = None) -> None:
        check_scale("FixedMagnitudeSignSymmetry", scale)
        self.seed = seed
        self.scale = scale

    def init(self, weight: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw M."""
        return {"M": draw(weight, generator, init="uniform", scale=self.scale).abs()}

    def feedback(self, weight: Array, state: State) -> Array:
        """M with the signs of W."""
        return signed(state["M"], weight)

    def potential(self, weight: Array, state: State) -> Array | None:
        """M ⊙ |W| per element."""
        return state["M"] * namespace(weight).abs(weight)

    def __repr__(self) -> str:
        """The call that makes this rule."""
        return f"FixedMagnitudeSignSymmetry(seed={self.seed}{scale_text(self.scale)})"
