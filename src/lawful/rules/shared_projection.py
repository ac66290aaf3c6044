"""Direct feedback alignment with one random matrix for all blocks, for models with a large vocabulary."""

from __future__ import annotations

from typing import ClassVar

import torch

from lawful.rules.base import draw, fan_in
from lawful.rules.direct_base import DirectRule
from lawful.types import Array, State


class SharedProjection(DirectRule):
    """δ_i = (e D_i) ⊙ σ'(h_i) where every D_i is the first out_i columns of one random matrix D.

    A language model's D_i is (vocabulary, width): drawn once per block it would be the largest tensor of the model
    many times over. Blocks of equal width have equal D here, so one copy can serve them all. Elements are uniform,
    scaled to deviation 1/√out_i.

    References:
        Launay, Poli, Boniface & Krzakala, *Direct Feedback Alignment Scales to Modern Deep Learning Tasks and
        Architectures*, NeurIPS 2020.
    """

    name: ClassVar[str] = "shared-dfa"

    def init(self, template: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw D column by column, so that a narrower block gets the first columns of a wider one's."""
        scale = fan_in(template) ** -0.5 if self.scale is None else self.scale
        return {"D": draw(template.t(), generator, init="uniform", scale=scale).t().contiguous()}

    def signal(self, error: Array, state: State) -> Array:
        """The error times D."""
        return error @ state["D"]

    def stream(self, tap: str) -> str:
        """One stream for all taps."""
        return "shared"
