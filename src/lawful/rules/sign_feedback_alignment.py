"""Feedback alignment that sends one bit: only the sign of the error that arrives."""

from __future__ import annotations

from typing import ClassVar

import torch

from lawful.rules.base import Adjoint, draw, matmul_adjoint
from lawful.rules.scale import check_scale, scale_text
from lawful.rules.stored_feedback import StoredFeedback
from lawful.types import Array, State, namespace


class SignFeedbackAlignment(StoredFeedback):
    """δ_{i-1} = m · sign(δ_i B_i) ⊙ σ'(h_{i-1}) with B_i fixed and random.

    No potential: ⟨W, B⟩ belongs to an error that is linear in B. The sign forgets the size of the error, the 1/n of
    a batch mean and the loss scale of an AMP gradient scaler included: hidden layers step by a size of order m·lr,
    whatever the loss.

    Args:
        seed: B is a function of (seed, dotted parameter name).
        magnitude: m, the size of every error sent.
        scale: standard deviation of B's elements (default 1/√fan-in); it changes nothing but rounding.

    Raises:
        SettingError: a negative or non-finite ``scale`` or ``magnitude``.

    References:
        Frenkel, Lefebvre & Bol, *Learning Without Feedback: Fixed Random Learning Signals Allow for Feedforward
        Training of Deep Neural Networks*, Frontiers in Neuroscience 15, 2021 (error signs, there for direct feedback).
    """

    name: ClassVar[str] = "sign-fa"

    def __init__(self, *, seed: int = 0, magnitude: float = 1.0, scale: float | None = None) -> None:
        check_scale("SignFeedbackAlignment", scale)
        check_scale("SignFeedbackAlignment (magnitude)", magnitude)
        self.seed = seed
        self.magnitude = magnitude
        self.scale = scale

    def init(self, weight: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw B."""
        return {"B": draw(weight, generator, scale=self.scale)}

    def potential(self, weight: Array, state: State) -> Array | None:
        """None: ⟨W, B⟩ pairs with δB, and its sign is sent instead."""
        return None

    def transport(self, delta: Array, B: Array, adjoint: Adjoint = matmul_adjoint) -> Array:
        """The sign of the adjoint's image, times m."""
        return self.magnitude * namespace(delta).sign(adjoint(delta, B))

    def __repr__(self) -> str:
        """The call that makes this rule."""
        return f"SignFeedbackAlignment(seed={self.seed}, magnitude={self.magnitude!r}{scale_text(self.scale)})"
