"""Monotone direct feedback alignment: positive weights and positive feedback, which cannot disagree in sign."""

from __future__ import annotations

from typing import ClassVar, Final

import torch

from lawful.rules.direct_base import DirectRule
from lawful.types import Array, State

SMALLEST: Final = 1e-6
"""What the weights are clipped to from below."""


class MonotoneDFA(DirectRule):
    """δ_i = (e D_i) ⊙ σ'(h_i) with D_i > 0, and W_i ≥ 10⁻⁶ for every weight between a block and the output (mDFA).

    With monotone activations and one output (binary classification) the output grows with every hidden unit, so that
    eD_i has the sign of the true gradient at each. The weights that read the input are free.

    ``project`` clips one weight; which weights it is called for is the attachment's knowledge.

    References:
        Lechner, *Learning Representations for Binary-Classification without Backpropagation*, ICLR 2020.
    """

    name: ClassVar[str] = "mdfa"

    def init(self, template: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw D and take its absolute value."""
        return {"D": super().init(template, generator)["D"].abs()}

    def signal(self, error: Array, state: State) -> Array:
        """The error times D."""
        return error @ state["D"]

    def project(self, weight: torch.Tensor) -> None:
        """Clip from below, in place."""
        weight.clamp_(min=SMALLEST)
