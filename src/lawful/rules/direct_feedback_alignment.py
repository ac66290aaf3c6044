"""Direct feedback alignment: the output error jumps to every block through a fixed random matrix."""

from __future__ import annotations

from typing import ClassVar

from lawful.rules.direct_base import DirectRule
from lawful.types import Array, State


class DirectFeedbackAlignment(DirectRule):
    """δ_i = (e D_i) ⊙ σ'(h_i), D_i (outputs, out_i) fixed and random.

    Between the last hidden layer and the output this is feedback alignment with B = D, and has its law; the weights
    of the earlier hidden layers of a ReLU net obey none.

    References:
        Nøkland, *Direct Feedback Alignment Provides Learning in Deep Neural Networks*, NeurIPS 2016.
    """

    name: ClassVar[str] = "dfa"

    def signal(self, error: Array, state: State) -> Array:
        """The error times D."""
        return error @ state["D"]
