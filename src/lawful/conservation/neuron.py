"""One law per channel: q_j = Σ ½‖W_p[j]‖² + ½b_p[j]² − k Σ Ψ_j(W_c)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise, starmap
from math import prod
from typing import Final

import torch

from lawful.affine.slices import Slices
from lawful.conservation import compiled
from lawful.conservation.base import LINEAR, Law, Tensors
from lawful.conservation.blocks import Reader, expand, line_sums
from lawful.conservation.combination import Combination, Moves, moves
from lawful.conservation.line_norms import LineNorms, Lines
from lawful.conservation.potential import SQUARE, Cut, Potential

COMPILED: Final = 1 << 17
"""Elements of a parameter from which on compiled code pays."""

_NOTHING: Final = Combination()


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

    def by_channel(self, lines: torch.Tensor) -> torch.Tensor:
        """Coefficient · (…, channels) in float64, from what every line sums to."""
        lines = lines if lines.dtype == torch.float64 else lines.double()
        if self._block:
            channels = lines if self._block == 1 else lines.unflatten(-1, (self.size, self._block)).sum(-1)
        else:
            place = self.channel.to(lines.device) % (self.size + 1)
            channels = lines.new_zeros(*lines.shape[:-1], self.size + 1).index_add(-1, place, lines)[..., : self.size]
        return channels if self.coefficient == 1 else self.coefficient * channels

    def numbers(self, first: int) -> torch.Tensor:
        """Which number each line adds to, (lines,), where the channels' numbers start at ``first``; −1 for none."""
        return torch.where(self.channel >= 0, self.channel + first, -1)

    def value(self, theta: Tensors) -> torch.Tensor:
        """Coefficient · Ψ_j(W)."""

        def psi(weight: torch.Tensor, cut: Cut = lambda x: x) -> torch.Tensor:
            return self.potential.value(weight.double(), cut)

        return self.by_channel(line_sums((self.slices, self.potential), psi, theta[self.slices.parameter]))

    def magnitude(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """|coefficient| · ⟨|B|, |V|⟩_j."""

        def product(weight: torch.Tensor, step: torch.Tensor, cut: Cut = lambda x: x) -> torch.Tensor:
            return (self.potential.feedback(weight, cut) * step).abs()

        name = self.slices.parameter
        return self.by_channel(line_sums((self.slices, self.potential), product, theta[name], v[name])).abs()

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
        """Drift and rates, (1 + directions, channels), every parameter read a block at a time."""
        return Together([self]).expand(theta, delta, along)[0]

    def magnitude(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """⟨|W_p|, |V_p|⟩_j + … : every product of the rate counted with its absolute value."""
        return _total([term.magnitude(theta, v) for term in self.terms])


@dataclass(frozen=True)
class _Pass:
    """All terms that read one window of a parameter, each with the number of its law."""

    parameter: str
    terms: Sequence[tuple[int, Term]]

    @cached_property
    def readers(self) -> list[Reader]:
        """What `expand` takes."""
        return [(term.slices, term.potential) for _, term in self.terms]

    @cached_property
    def is_normed(self) -> bool:
        """Whether every drift is a multiple of the squared norms of lines."""
        return all(psi.curvature is not None for _, psi in self.readers)


class Together:
    """Several laws at once; where they expand, with one pass over each parameter for all neuron laws that read it.

    Args:
        laws: any laws; the results come in their order.
    """

    def __init__(self, laws: Sequence[Law]) -> None:
        self._laws = tuple(laws)
        terms: dict[tuple[str, tuple[int, int] | None], list[tuple[int, Term]]] = {}
        for i, law in enumerate(self._laws):
            for term in law.terms if isinstance(law, NeuronLaw) else ():
                terms.setdefault((term.slices.parameter, term.slices.window), []).append((i, term))
        # what the optimiser moved last is still in the cache
        self._passes = [_Pass(name, own) for (name, _), own in reversed(terms.items())]
        ends = [0, *accumulate(len(law.names) for law in self._laws)]
        self._own, self._count = list(starmap(slice, pairwise(ends))), ends[-1]
        size = max((prod(term.slices.shape) for one in self._passes for _, term in one.terms), default=0)
        # for small models it would compile in vain, for a second or more
        self._at_once = size >= COMPILED and compiled.is_available()
        self._others = [i for i, law in enumerate(self._laws) if not isinstance(law, NeuronLaw)]
        self._curved = [i for i in self._others if self._laws[i].kind not in LINEAR]
        self._drift: dict[int, torch.Tensor] = {}

    @cached_property
    def _norms(self) -> LineNorms:
        return LineNorms([self._lines(one) for one in self._passes], at_once=self._at_once)

    def _lines(self, one: _Pass) -> list[Lines]:
        """The lines whose norms are all that the drift asks of the parameter, if they are."""
        found: dict[Slices, Lines] = {}
        for i, term in one.terms if one.is_normed else ():
            if term.potential.curvature:
                lines = found.setdefault(term.slices, Lines(term.slices))
                lines.use(term.coefficient * term.potential.curvature / 2, term.numbers(self._own[i].start))
        return list(found.values())

    def follow(self, theta: Moves, delta: Moves) -> None:
        """Take in the drift of one step, cheaply; :meth:`followed` says what came together."""
        moved: list[tuple[int, Combination]] = []
        for k, one in enumerate(self._passes):
            step = delta.get(one.parameter)
            if step and one.is_normed:
                moved.append((k, step))
            elif step:
                found = expand(one.readers, theta[one.parameter], step, [])
                for (i, term), lines in zip(one.terms, found, strict=True):
                    if lines is not None:
                        self._add(i, term.by_channel(lines)[0])
        self._norms.add(moved)
        for i in self._curved:
            self._add(i, self._laws[i].expand(theta, delta, [])[0])

    def _add(self, law: int, drift: torch.Tensor) -> None:
        self._drift[law] = self._drift[law] + drift if law in self._drift else drift

    def followed(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """:meth:`Law.drift` of all laws, end to end, over the steps since the last call: (numbers,), float64."""
        total = torch.zeros(self._count + 1, dtype=torch.float64, device=device)
        for i, drift in self._drift.items():
            total[self._own[i]] += drift
        self._norms.take_to(total)
        self._drift.clear()
        return total[:-1]

    def expand(self, theta: Moves, delta: Moves, along: Sequence[Moves]) -> list[torch.Tensor]:
        """:meth:`Law.expand` of every law."""
        sums: list[torch.Tensor | None] = [None] * len(self._laws)
        for one in self._passes:
            name = one.parameter
            directions = [v.get(name, _NOTHING) for v in along]
            found = expand(one.readers, theta[name], delta.get(name), directions, at_once=self._at_once)
            for (i, term), lines in zip(one.terms, found, strict=True):
                if lines is not None:
                    so_far, channels = sums[i], term.by_channel(lines)
                    sums[i] = channels if so_far is None else so_far + channels
        for i in self._others:
            sums[i] = self._laws[i].expand(theta, delta, along)
        return [
            theta[law.parameters[0]].first.new_zeros(1 + len(along), len(law.names), dtype=torch.float64)
            if rows is None
            else rows
            for law, rows in zip(self._laws, sums, strict=True)
        ]


def _total(parts: list[torch.Tensor]) -> torch.Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
