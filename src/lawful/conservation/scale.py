"""Scale laws: ½(‖W‖² + ‖b‖²) of all that is written in front of a norm, which does not see its scale as eps → 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from lawful.conservation.neuron import NeuronLaw, Term
from lawful.conservation.norm_calls import NormCall, Share


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
        norms: what the norms that it rests on add: the law is exact as their eps goes to 0.
        summed: whether several channels make one component.
    """

    def __init__(
        self,
        name: str,
        terms: Sequence[Term],
        source: str,
        names: Sequence[str],
        *,
        norms: Sequence[Share],
        summed: bool,
    ) -> None:
        note = "exact as eps → 0"
        note = (
            note if not summed else f"summed over j; {note}" if len(names) == 1 else f"summed over groups of j; {note}"
        )
        super().__init__(name, terms, source, names, kind="scale", note=note)
        self.norms = tuple(norms)

    @property
    def eps(self) -> float:
        """The largest eps of its norms."""
        return max(share.call.form.eps for share in self.norms)

    def eps_rate(self, amounts: Mapping[NormCall, torch.Tensor]) -> torch.Tensor:
        """What :meth:`rate` is, exactly, from :func:`lawful.conservation.norm_calls.amounts_of` of the same run."""
        rate = torch.zeros(len(self.names), dtype=torch.float64)
        for share in self.norms:
            amount = amounts[share.call].double()
            rate = rate.to(amount.device).index_add(0, share.place, share.coefficient * amount[share.rows])
        return rate
