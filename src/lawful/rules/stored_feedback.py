"""What rules that keep B share: B itself as feedback and, where it stays as it is, the linear potential."""

from __future__ import annotations

from lawful.rules.base import Rule
from lawful.types import Array, State


class StoredFeedback(Rule):
    """B is kept in the state as ``B``; subclasses say how it is made, and whether it moves.

    An attachment reads such a B without calling ``feedback``.
    """

    def feedback(self, weight: Array, state: State) -> Array:
        """The stored B."""
        return state["B"]


class FixedFeedback(StoredFeedback):
    """B constant in time, with potential Ψ(W) = ⟨B, W⟩."""

    def potential(self, weight: Array, state: State) -> Array | None:
        """B ⊙ W per element."""
        return state["B"] * weight
