"""Direct random target projection: every block is taught by the label alone, before any error is known."""

from __future__ import annotations

from typing import ClassVar

from lawful.rules.direct_base import DirectRule
from lawful.types import Array, State, namespace


class DirectRandomTargetProjection(DirectRule):
    """δ_i = −(1/n)(y* D_i) ⊙ σ'(h_i), y* the one-hot label of each of the n examples, D_i fixed and random.

    For classification only: softmax or sigmoid with cross-entropy has e_k = c(p_k − y*_k) with c > 0, so that the
    label is where the error is negative, y* = 1[e < 0]. Reading it there needs no second input, and an example
    that the loss ignores (e = 0) teaches nothing and is not counted in n. The size c of the error is forgotten: class
    weights, a loss scale and the division by the number of accumulated batches do not reach the hidden layers.

    The source sends +y*D with its random D; the sign here makes it a descent direction in the letters of this
    library, e = output − target, and D's distribution is symmetric.

    References:
        Frenkel, Lefebvre & Bol, *Learning Without Feedback: Fixed Random Learning Signals Allow for Feedforward
        Training of Deep Neural Networks*, Frontiers in Neuroscience 15, 2021.
    """

    name: ClassVar[str] = "drtp"

    def signal(self, error: Array, state: State) -> Array:
        """−1[e < 0] D / n, n the number of rows with an error."""
        xp = namespace(error)
        sign = xp.sign(error)
        label = (xp.abs(sign) - sign) / 2
        examples = (error != 0).any(-1).sum()
        return -(label @ state["D"]) / (examples + (examples == 0))
