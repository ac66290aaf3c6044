"""What rules with a constant B share: B itself as feedback, and the linear potential."""

from __future__ import annotations

from lawful.rules.base import Rule
from lawful.types import Array, State


class FixedFeedback(Rule):
    """B constant in time, kept in the state as ``B``, with potential Ψ(W) = ⟨B, W⟩; subclasses say how B is made."""

    def feedback(self, weight: Array, state: State) -> Array:
        """The stored B."""
        return state["B"]

    def potential(self, weight: Array, state: State) -> Array | None:
        """B ⊙ W per element."""
        return state["B"] * weight
