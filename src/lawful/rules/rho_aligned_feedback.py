"""Feedback alignment with a chosen correlation between the fixed feedback and the initial weight."""

from __future__ import annotations

from typing import ClassVar

import torch

from lawful.errors import SettingError
from lawful.rules.base import draw
from lawful.rules.stored_feedback import FixedFeedback


class RhoAlignedFeedback(FixedFeedback):
    """B = ρW(0) + √(1−ρ²) R, R normal with the root mean square of W(0); potential Ψ(W) = ⟨B, W⟩.

    ρ = 0 is feedback alignment at the weight's own scale, ρ = 1 is B = W(0). The cosine of B and W(0) is ρ up to
    the sampling error of order 1/√N, N the number of weights; with ``exact`` it is ρ to rounding, and ‖B‖ = ‖W(0)‖.

    Args:
        rho: ρ in [−1, 1].
        seed: R is a function of (seed, dotted parameter name).
        exact: take out of R what lies along W(0) and give the rest W(0)'s norm, where the source leaves both to chance.

    Raises:
        SettingError: ``rho`` outside [−1, 1]; at attachment, a weight that is zero and so has no scale, or, for
            ``exact`` and |ρ| < 1, one of a single element, to which no R is orthogonal.

    References:
        Bordelon & Pehlevan, *The Influence of Learning Rule on Representation Dynamics in Wide Neural Networks*,
        ICLR 2023.
    """

    name: ClassVar[str] = "rho-fa"

    def __init__(self, rho: float, *, seed: int = 0, exact: bool = False) -> None:
        if not -1 <= rho <= 1:
            raise SettingError(f"RhoAlignedFeedback: rho must lie in [-1, 1]; got {rho!r}")
        self.rho = rho
        self.seed = seed
        self.exact = exact

    def init(self, weight: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Mix W(0) with fresh noise of its size."""
        initial = weight.detach().double()
        size = float(initial.square().mean().sqrt())
        if size == 0:
            raise SettingError(
                f"RhoAlignedFeedback: a weight of shape {tuple(weight.shape)} is zero, so B would be zero; "
                "attach before zeroing it, or give this parameter another rule by name"
            )
        noise = draw(initial, generator, scale=size)
        if self.exact and abs(self.rho) < 1:
            noise = _across(noise, initial)
        return {"B": (self.rho * initial + (1 - self.rho**2) ** 0.5 * noise).to(weight)}

    def __repr__(self) -> str:
        """The call that makes this rule."""
        return f"RhoAlignedFeedback({self.rho!r}, seed={self.seed}{', exact=True' if self.exact else ''})"


def _across(noise: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
    """The part of ``noise`` orthogonal to ``initial``, stretched to its norm."""
    if initial.numel() < 2:
        raise SettingError(
            "RhoAlignedFeedback: exact=True needs a weight of two elements or more; got one of shape "
            f"{tuple(initial.shape)}: leave out exact, or give this parameter another rule by name"
        )
    rest = noise - (noise * initial).sum() / initial.square().sum() * initial
    return rest * (initial.norm() / rest.norm())
