"""Feedback alignment through a bottleneck: a fixed random B of low rank."""

from __future__ import annotations

from typing import ClassVar

import torch

from lawful.errors import SettingError
from lawful.rules.base import draw, fan_in
from lawful.rules.scale import check_scale, scale_text
from lawful.rules.stored_feedback import FixedFeedback


class LowRankFeedback(FixedFeedback):
    """B = (scale/√r) P Q with P (out, r) and Q (r, in·kernel) standard normal; potential Ψ(W) = ⟨B, W⟩.

    The rank is min(r, out, in·kernel); elements have mean square scale².

    Args:
        rank: r.
        seed: P and Q are functions of (seed, dotted parameter name).
        scale: standard deviation of B's elements (default 1/√fan-in).

    Raises:
        SettingError: ``rank`` below 1, a negative or non-finite ``scale``.
    """

    name: ClassVar[str] = "low-rank-fa"

    def __init__(self, rank: int, *, seed: int = 0, scale: float | None = None) -> None:
        check_scale("LowRankFeedback", scale)
        if rank < 1:
            raise SettingError(f"LowRankFeedback: rank must be >= 1; got {rank!r}")
        self.rank = rank
        self.seed = seed
        self.scale = scale

    def init(self, weight: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw both factors and multiply them in float64."""
        rows, columns = weight.shape[0], weight.shape[1:].numel()
        template = torch.empty(0, dtype=torch.float64)
        P = draw(template.new_empty(rows, self.rank), generator, scale=1.0)
        Q = draw(template.new_empty(self.rank, columns), generator, scale=1.0)
        scale = fan_in(weight) ** -0.5 if self.scale is None else self.scale
        return {"B": (scale * self.rank**-0.5 * (P @ Q)).reshape(weight.shape).to(weight)}

    def __repr__(self) -> str:
        """The call that makes this rule."""
        return f"LowRankFeedback({self.rank}, seed={self.seed}{scale_text(self.scale)})"
