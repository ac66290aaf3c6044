"""One law per channel: q_j = Σ ½‖W_p[j]‖² + ½b_p[j]² − k Σ Ψ_j(W_c)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lawful.affine.slices import Block, Slices
from lawful.conservation.base import Law, Tensors
from lawful.conservation.combination import Combination, Moves, moves
from lawful.conservation.potential import SQUARE, Cut, Potential

Quantity = Callable[..., torch.Tensor]
"""(pieces of some tensors, ``cut=``) -> a quantity per element."""


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

    def _by_channel(self, lines: torch.Tensor) -> torch.Tensor:
        """(…, channels) in float64 from what every line sums to."""
        lines = lines.double()
        if self._block:
            channels = lines if self._block == 1 else lines.unflatten(-1, (self.size, self._block)).sum(-1)
        else:
            place = self.channel.to(lines.device) % (self.size + 1)
            channels = lines.new_zeros(*lines.shape[:-1], self.size + 1).index_add(-1, place, lines)[..., : self.size]
        return channels if self.coefficient == 1 else self.coefficient * channels

    def _pieces(self, quantity: Quantity, *operands: Combination) -> Callable[[Block], torch.Tensor]:
        """A quantity per element, a block at a time; where the rule looks at the whole weight, it is computed whole."""
        if self.potential.elementwise:
            return lambda block: quantity(*(x.piece(block) for x in operands), cut=block)
        done = quantity(*(x.whole() for x in operands))
        return lambda block: block(done)

    def _sums(self, *elements: Callable[[Block], torch.Tensor]) -> torch.Tensor:
        """Coefficient · the sums, by channel, of quantities per element: (quantities, channels)."""
        sums = [torch.stack([block.sum(e(block)).double() for e in elements]) for block in self.slices.blocks()]
        return self._by_channel(self.slices.join(sums))

    def value(self, theta: Tensors) -> torch.Tensor:
        """Coefficient · Ψ_j(W)."""

        def psi(weight: torch.Tensor, **cut: Cut) -> torch.Tensor:
            return self.potential.value(weight.double(), **cut)

        return self._sums(self._pieces(psi, Combination(theta[self.slices.parameter])))[0]

    def magnitude(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """|coefficient| · ⟨|B|, |V|⟩_j."""
        back = self._pieces(self.potential.feedback, Combination(theta[self.slices.parameter]))
        return self._sums(lambda block: (back(block) * block(v[self.slices.parameter])).abs())[0].abs()

    def expand(self, theta: Moves, delta: Moves, along: Sequence[Moves]) -> torch.Tensor:
        """Coefficient · D_Ψ(W + Δ, W)_j, then coefficient · ⟨B, V⟩_j for every V of ``along``: (1 + V's, channels)."""
        name = self.slices.parameter
        found = torch.zeros(1 + len(along), self.size, dtype=torch.float64, device=theta[name].first.device)
        if name in delta and self.potential.curvature != 0:
            found[0] = self._drift(theta[name], delta[name])
        steps = {row: v[name] for row, v in enumerate(along, start=1) if name in v}
        if steps:
            # a B that does not depend on W asks for any tensor of its shape: W itself need not be read
            at = theta[name] if self.potential.curvature != 0 else Combination(theta[name].first)
            back = self._pieces(self.potential.feedback, at)
            found[list(steps)] = self._rates(back, list(steps.values()))
        return found

    def _rates(self, back: Callable[[Block], torch.Tensor], steps: list[Combination]) -> torch.Tensor:
        sums = []
        for block in self.slices.blocks():  # B is read once for all directions
            B = back(block)
            sums.append(torch.stack([block.sum(B * v.body(block)).double() for v in steps]))
        factors = torch.tensor([[v.factor] for v in steps], dtype=torch.float64, device=sums[0].device)
        return factors * self._by_channel(self.slices.join(sums))

    def _drift(self, weight: Combination, step: Combination) -> torch.Tensor:
        curvature = self.potential.curvature
        if curvature is None:
            return self._sums(self._pieces(self.potential.bregman, weight, step))[0]
        sums = [block.square(step.body(block)).double() for block in self.slices.blocks()]
        return curvature * step.factor**2 / 2 * self._by_channel(self.slices.join(sums))

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
        """q_j, (channels,), float64."""
        return _total([term.value(theta) for term in self.terms])

    def rate(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """⟨W_p, V_p⟩_j + b_j v_j − k⟨B_c, V_c⟩_j: needs B only, so it exists for rules without a potential."""
        return self.expand(moves(theta), {}, [moves(v)])[1]

    def drift(self, theta: Tensors, delta: Tensors) -> torch.Tensor:
        """½‖Δ_p‖²_j − k·D_Ψ(W_c + Δ_c, W_c)_j."""
        return self.expand(moves(theta), moves(delta), [])[0]

    def expand(self, theta: Moves, delta: Moves, along: Sequence[Moves]) -> torch.Tensor:
        """Drift and rates, every parameter read a block at a time."""
        return _total([term.expand(theta, delta, along) for term in self.terms])

    def magnitude(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """⟨|W_p|, |V_p|⟩_j + … : every product of the rate counted with its absolute value."""
        return _total([term.magnitude(theta, v) for term in self.terms])


def _total(parts: list[torch.Tensor]) -> torch.Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
