"""The feedback potential Ψ of one weight: its value, its gradient B, and its exact Bregman divergence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch

from lawful.errors import NoLawError
from lawful.rules.backprop import Backprop
from lawful.rules.base import Rule
from lawful.rules.feedback_alignment import FeedbackAlignment
from lawful.rules.fixed_magnitude_sign_symmetry import FixedMagnitudeSignSymmetry
from lawful.rules.kolen_pollack import KolenPollack
from lawful.rules.low_rank_feedback import LowRankFeedback
from lawful.rules.rho_aligned_feedback import RhoAlignedFeedback
from lawful.rules.sparse_feedback import SparseFeedback
from lawful.rules.uniform_sign_symmetry import UniformSignSymmetry
from lawful.types import State

CURVATURE: Final[dict[type[Rule], int]] = {
    Backprop: 1,
    FeedbackAlignment: 0,
    KolenPollack: 1,
    LowRankFeedback: 0,
    RhoAlignedFeedback: 0,
    SparseFeedback: 0,
}
"""Rules with a quadratic potential: D_Ψ(W + Δ, W) = ½ · curvature · Δ². A test holds these against :func:`bregman`."""

ELEMENTWISE: Final = frozenset({*CURVATURE, FixedMagnitudeSignSymmetry, UniformSignSymmetry})
"""Rules whose B and Ψ at an element depend on that element and its state alone, so that a piece of W will do. Only
known rules: a potential is a sum over elements, but its coefficients may depend on the whole of W."""


def _stateless() -> State:
    return {}


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


Cut = Callable[[torch.Tensor], torch.Tensor]
"""From a tensor of the parameter's shape to the piece of it that is looked at."""


class Potential:
    """Ψ, and B = ∇Ψ, of one weight under one rule; the rule's state is read live.

    Args:
        rule: the weight's rule.
        state: returns the rule's state of this weight as it is now.
    """

    def __init__(self, rule: Rule, state: Callable[[], State] = _stateless) -> None:
        self.rule = rule
        self.state = state

    def _state(self, weight: torch.Tensor, cut: Cut = _whole) -> Mapping[str, torch.Tensor]:
        pieces = {key: cut(t) if t.dim() else t for key, t in self.state().items()}
        return {key: t.to(weight) if t.is_floating_point() else t for key, t in pieces.items()}

    def value(self, weight: torch.Tensor, cut: Cut = _whole) -> torch.Tensor:
        """Ψ per element of a weight, or of the piece of it that ``cut`` cuts."""
        psi = self.rule.potential(weight, self._state(weight, cut))
        if psi is None:
            raise NoLawError(f"{self.rule!r} has no feedback potential, so q is not defined; its rate is")
        return psi

    @property
    def linear(self) -> bool:
        """Whether errors travel as δB; a rule with a transport of its own obeys no identity in ⟨Ẇ, B⟩."""
        return type(self.rule).transport is Rule.transport

    def exists(self, weight: torch.Tensor) -> bool:
        """Whether the rule has a potential at all."""
        return self.rule.potential(weight, self._state(weight)) is not None

    def lack(self, name: str) -> str:
        """Why there is no law of a weight of this name, where there is none."""
        return f"{self.rule!r} of {name} has no {'potential' if self.linear else 'linear transport'}"

    def constant(self, weight: torch.Tensor) -> bool:
        """Whether errors travel as δB with a B that training leaves alone."""
        return self.linear and not self.rule.learns and self.slope(weight) == 0

    def feedback(self, weight: torch.Tensor, cut: Cut = _whole) -> torch.Tensor:
        """B, or a piece of it."""
        return self.rule.feedback(weight, self._state(weight, cut))

    def bregman(self, weight: torch.Tensor, delta: torch.Tensor, cut: Cut = _whole) -> torch.Tensor:
        """D_Ψ(W + Δ, W) = Ψ(W + Δ) − Ψ(W) − ⟨B, Δ⟩ per element, without cancellation."""
        curvature = self.curvature
        return bregman(self, weight, delta, cut) if curvature is None else curvature * delta * delta / 2

    @property
    def elementwise(self) -> bool:
        """Whether a piece of B needs only that piece of W."""
        follows_all = isinstance(self.rule, UniformSignSymmetry) and self.rule.adaptive
        return type(self.rule) in ELEMENTWISE and not follows_all

    @property
    def curvature(self) -> int | None:
        """The second derivative of Ψ where it is one number for every W; None otherwise."""
        return CURVATURE.get(type(self.rule))

    @property
    def is_square(self) -> bool:
        """Whether B is W itself."""
        return type(self.rule) is Backprop

    def slope(self, weight: torch.Tensor) -> int | None:
        """∂B/∂W where it is one number, 0 or 1, for every element: B = slope · W + const. None otherwise.

        Matrix laws need it: only then is BᵀẆ + ẆᵀB the rate of something. Found by moving W: by a step that
        turns every sign, so sign rules are told apart, and leaves no element where it is, even if W = 0.
        """
        generator = torch.Generator().manual_seed(0)
        size = 2 + torch.rand(weight.shape, generator=generator, dtype=weight.dtype).to(weight.device)
        step = torch.where(weight == 0, size, -weight * size)
        jump = self.feedback(weight + step) - self.feedback(weight)
        if not bool(jump.any()):
            return 0
        tolerance = 64 * torch.finfo(weight.dtype).eps * (step.abs().max() + self.feedback(weight).abs().max())
        return 1 if bool(((jump - step).abs() <= tolerance).all()) else None


class WholePotential(Potential):
    """Ψ of a weight that is no sum over elements: what the elements are given has a meaning only in all."""

    @property
    def elementwise(self) -> bool:
        """No: every share depends on the whole weight."""
        return False

    def value(self, weight: torch.Tensor, cut: Cut = _whole) -> torch.Tensor:
        """Shares of Ψ, of the whole weight."""
        psi = self.rule.whole_potential(weight, self._state(weight))
        assert psi is not None
        return psi

    def exists(self, weight: torch.Tensor) -> bool:
        """Whether the rule has a potential of the whole weight."""
        return self.rule.whole_potential(weight, self._state(weight)) is not None


def bregman(potential: Potential, weight: torch.Tensor, delta: torch.Tensor, cut: Cut = _whole) -> torch.Tensor:
    """D_Ψ for any potential: the trapezoid ½ΔB·Δ where it is exact (Ψ quadratic along the step), else the definition.

    Where the two agree to rounding, the trapezoid is the more accurate number.
    """
    moved = weight + delta
    before, after = potential.value(weight, cut), potential.value(moved, cut)
    feedback = potential.feedback(weight, cut)
    trapezoid = (potential.feedback(moved, cut) - feedback) * delta / 2
    direct = after - before - feedback * delta
    rounding = 8 * torch.finfo(weight.dtype).eps * (after.abs() + before.abs() + (feedback * delta).abs())
    return torch.where((direct - trapezoid).abs() <= rounding, trapezoid, direct)


SQUARE: Final = Potential(Backprop())
"""½W²: what a producer's own weight contributes under every rule."""
