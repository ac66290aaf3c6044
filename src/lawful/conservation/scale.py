"""Scale laws: ½(‖W‖² + ‖b‖²) of all that is written in front of a norm, which does not see its scale as eps → 0."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Final

from torch import nn

from lawful.conservation.neuron import NeuronLaw, Term

LIMIT: Final = 1e-60
"""An eps that is as good as 0 in double precision, and positive, as batch norm asks of it."""
_EPS: Final = ("eps", "epsilon", "variance_epsilon")


class ScaleLaw(NeuronLaw):
    """Σ ½‖W_p‖² + ½‖b_p‖² over the writers p and the channels that a norm reads together.

    A batch norm reads channel j by itself, and exactly d/dt ½(‖W[j]‖² + b_j²) = ε/(v_j + ε) · γ_jγ̇_j. A layer norm or
    RMS norm reads all channels of a stream, a group norm the channels of a group; with v the variance at a position n,
    the rate is −Σ_n ε/(v_n + ε) Σ_j δ_nj γ_j x̂_nj, δ the error at the norm's output.

    Args:
        name: where it lives.
        terms: see :class:`NeuronLaw`.
        source: who stated it.
        names: of its components.
        eps: the largest eps of the norms that it rests on: the law is exact as this goes to 0.
        summed: whether several channels make one component.
    """

    def __init__(
        self, name: str, terms: Sequence[Term], source: str, names: Sequence[str], *, eps: float, summed: bool
    ) -> None:
        note = "exact as eps → 0"
        note = (
            note if not summed else f"summed over j; {note}" if len(names) == 1 else f"summed over groups of j; {note}"
        )
        super().__init__(name, terms, source, names, kind="scale", note=note)
        self.eps = eps


def at_limit(model: nn.Module) -> nn.Module:
    """A copy of a model in which the eps of every norm that keeps it as an attribute is as good as 0."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        for name in _EPS:
            if isinstance(vars(module).get(name), float) or (name == "eps" and isinstance(module, nn.RMSNorm)):
                setattr(module, name, LIMIT)
    return copied
