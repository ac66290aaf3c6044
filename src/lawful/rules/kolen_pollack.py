"""Kolen–Pollack: the feedback weight takes every step that the weight takes, so their difference only decays."""

from __future__ import annotations

from typing import ClassVar

import torch

from lawful.errors import SettingError
from lawful.rules.base import Rule, draw
from lawful.rules.scale import check_scale, scale_text
from lawful.types import Array, State


class KolenPollack(Rule):
    """B = W + C: the step of W is B's too. Potential Ψ(W) = ½‖W‖² + ⟨C, W⟩, which is ½‖B‖² less ½‖C‖².

    After each optimizer step both W and C, hence B, are multiplied by 1 − λ, so that W − B = (1−λ)ᵗ (W(0) − B(0)),
    whatever the optimizer. The potential is that of the time between two steps; with λ = 0 C is constant and the
    law ½‖W_i[j]‖² + ½b² − kΨ_j(W_{i+1}) holds throughout.

    The source updates B by its own copy of the weight's gradient; storing C instead needs no second optimizer and
    makes "the same step" exact for every optimizer.

    Args:
        seed: B(0) is a function of (seed, dotted parameter name).
        decay: λ in [0, 1); it replaces the optimizer's weight decay, which would pull on W and not on C.
        scale: standard deviation of B(0)'s elements (default 1/√fan-in).

    Raises:
        SettingError: ``decay`` outside [0, 1), a negative or non-finite ``scale``.

    References:
        Kolen & Pollack, *Backpropagation without weight transport*, ICNN 1994. Akrout, Wilson, Humphreys, Lillicrap
        & Tweed, *Deep Learning without Weight Transport*, NeurIPS 2019.
    """

    name: ClassVar[str] = "kp"

    def __init__(self, *, seed: int = 0, decay: float = 0.0, scale: float | None = None) -> None:
        check_scale("KolenPollack", scale)
        if not 0 <= decay < 1:
            raise SettingError(f"KolenPollack: decay must lie in [0, 1); got {decay!r}")
        self.learns = decay > 0
        self.seed = seed
        self.decay = decay
        self.scale = scale

    def init(self, weight: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw B(0) and store C = B(0) − W(0)."""
        return {"C": draw(weight, generator, scale=self.scale) - weight.detach()}

    def feedback(self, weight: Array, state: State) -> Array:
        """W + C."""
        return weight + state["C"]

    def potential(self, weight: Array, state: State) -> Array | None:
        """½W² + C ⊙ W per element."""
        return weight * weight / 2 + state["C"] * weight

    def after_step(self, weight: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        """Decay W and C, in place, by 1 − λ."""
        if self.decay:
            weight.mul_(1 - self.decay)
            state["C"].mul_(1 - self.decay)

    def __repr__(self) -> str:
        """The call that makes this rule."""
        return f"KolenPollack(seed={self.seed}, decay={self.decay!r}{scale_text(self.scale)})"
