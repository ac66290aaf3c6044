"""Feedback alignment through few connections: a fixed random B most of whose elements are zero."""

from __future__ import annotations

from typing import ClassVar

import torch

from lawful.errors import SettingError
from lawful.rules.base import draw
from lawful.rules.scale import check_scale, scale_text
from lawful.rules.stored_feedback import FixedFeedback


class SparseFeedback(FixedFeedback):
    """B = (S ⊙ R)/√p, S Bernoulli(p), R normal with deviation ``scale``; potential Ψ(W) = ⟨B, W⟩.

    Dividing by √p keeps the mean square of B's elements at scale², whatever the density. B is stored dense.

    Args:
        density: p in (0, 1], the probability of a connection.
        seed: S and R are functions of (seed, dotted parameter name).
        scale: root mean square of B's elements (default 1/√fan-in).

    Raises:
        SettingError: ``density`` outside (0, 1], a negative or non-finite ``scale``.

    References:
        Crafton, Parihar, Gebhardt & Raychowdhury, *Direct Feedback Alignment with Sparse Connections for Local
        Learning*, Frontiers in Neuroscience 13, 2019 (there for direct feedback).
    """

    name: ClassVar[str] = "sparse-fa"

    def __init__(self, density: float, *, seed: int = 0, scale: float | None = None) -> None:
        check_scale("SparseFeedback", scale)
        if not 0 < density <= 1:
            raise SettingError(f"SparseFeedback: density must lie in (0, 1]; got {density!r}")
        self.density = density
        self.seed = seed
        self.scale = scale

    def init(self, weight: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw R, then the mask S."""
        noise = draw(weight, generator, scale=self.scale)
        mask = torch.rand(weight.shape, generator=generator, dtype=torch.float64) < self.density
        return {"B": noise * mask.to(weight) * self.density**-0.5}

    def __repr__(self) -> str:
        """The call that makes this rule."""
        return f"SparseFeedback({self.density!r}, seed={self.seed}{scale_text(self.scale)})"
