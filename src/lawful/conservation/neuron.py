"""One law per channel: q_j = Σ ½‖W_p[j]‖² + ½b_p[j]² − k Σ Ψ_j(W_c)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lawful.affine.slices import Slices
from lawful.conservation.base import Law, Tensors
from lawful.conservation.potential import SQUARE, Potential


class Term:
    """coefficient · Σ Ψ over the elements that one channel owns in one parameter.

    Args:
        slices: the parameter's lines.
        potential: Ψ; ½W² for a producer.
        coefficient: +1 for a producer, −k for a consumer behind a degree-k activation.
        channel: (lines,) which channel a line belongs to, −1 for none.
        size: number of channels.
    """

    def __init__(
        self, slices: Slices, potential: Potential, coefficient: float, channel: torch.Tensor, size: int
    ) -> None:
        self.slices, self.potential, self.coefficient = slices, potential, coefficient
        self.channel, self.size = channel, size
        block = channel.numel() // size if size and channel.numel() % size == 0 else 0
        regular = block and bool((channel == torch.arange(size).repeat_interleave(block)).all())
        self._block = block if regular else 0

    def _gather(self, element: torch.Tensor) -> torch.Tensor:
        return self._by_channel(self.slices.sum(element))

    def _by_channel(self, lines: torch.Tensor) -> torch.Tensor:
        if self._block:
            channels = lines if self._block == 1 else lines.reshape(self.size, self._block).sum(1)
        else:
            channel = self.channel.to(lines.device)
            channels = lines.new_zeros(self.size + 1).index_add(0, channel % (self.size + 1), lines)[: self.size]
        return channels if self.coefficient == 1 else self.coefficient * channels

    def value(self, theta: Tensors) -> torch.Tensor:
        """Coefficient · Ψ_j(W)."""
        return self._gather(self.potential.value(theta[self.slices.parameter]))

    def rate(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """Coefficient · ⟨B, V⟩_j."""
        return self._gather(self.potential.feedback(theta[self.slices.parameter]) * v[self.slices.parameter])

    def magnitude(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """|coefficient| · ⟨|B|, |V|⟩_j."""
        name = self.slices.parameter
        return self._gather((self.potential.feedback(theta[name]) * v[name]).abs()).abs()

    def drift(self, theta: Tensors, delta: Tensors) -> torch.Tensor:
        """Coefficient · D_Ψ(W + Δ, W)_j."""
        step, curvature = delta[self.slices.parameter], self.potential.curvature
        if curvature == 0:
            return step.new_zeros(self.size)
        if curvature == 1:
            return self._by_channel(self.slices.square(step)) / 2
        return self._gather(self.potential.bregman(theta[self.slices.parameter], step))

    @property
    def text(self) -> str:
        """The term in print, with its sign."""
        size = abs(self.coefficient)
        factor = "" if size == 1 else f"{size:g}·"
        body = f"½‖{self.slices.text}‖²" if self.potential is SQUARE else f"Ψ({self.slices.text})"
        return f"{'−' if self.coefficient < 0 else '+'} {factor}{body}"


def sum_text(terms: Sequence[str]) -> str:
    """Signed terms as one formula."""
    return " ".join(terms).removeprefix("+ ")


def primed(terms: Sequence[str]) -> list[str]:
    """The second channel of a law that couples two, as rotary embedding does, is written j'."""
    seen: dict[str, int] = {}
    texts = []
    for text in terms:
        primes = seen[text] = seen.get(text, -1) + 1
        texts.append(text.replace("j]", "j" + "'" * primes + "]"))
    return texts


class NeuronLaw(Law):
    """q_j = Σ of terms, for every channel j of a site at once.

    >>> W, B = torch.eye(2), torch.ones(1, 2)
    >>> every = torch.arange(2)
    >>> law = NeuronLaw("fc1", [Term(Slices("W", (2, 2), (0,)), SQUARE, 1, every, 2)], "here", ["0", "1"])
    >>> law.value({"W": 2 * W}).tolist()
    [2.0, 2.0]
    """

    def __init__(
        self,
        name: str,
        terms: Sequence[Term],
        source: str,
        names: Sequence[str],
        *,
        kind: str = "neuron",
        note: str = "",
    ) -> None:
        self.name, self.terms, self.source, self.names, self.kind, self.note = (
            name,
            tuple(terms),
            source,
            names,
            kind,
            note,
        )
        self.parameters = tuple(dict.fromkeys(term.slices.parameter for term in terms))
        self.potentials = tuple(term.potential for term in terms)
        self.formula = sum_text(primed([term.text for term in terms]))

    def value(self, theta: Tensors) -> torch.Tensor:
        """q_j, (channels,)."""
        return _total([term.value(theta) for term in self.terms])

    def rate(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """⟨W_p, V_p⟩_j + b_j v_j − k⟨B_c, V_c⟩_j: needs B only, so it exists for rules without a potential."""
        return _total([term.rate(theta, v) for term in self.terms])

    def drift(self, theta: Tensors, delta: Tensors) -> torch.Tensor:
        """½‖Δ_p‖²_j − k·D_Ψ(W_c + Δ_c, W_c)_j."""
        return _total([term.drift(theta, delta) for term in self.terms])

    def magnitude(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """⟨|W_p|, |V_p|⟩_j + … : every product of the rate counted with its absolute value."""
        return _total([term.magnitude(theta, v) for term in self.terms])


def _total(parts: list[torch.Tensor]) -> torch.Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
