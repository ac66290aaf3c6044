"""One pass over a parameter for everything that laws ask of it, a block of rows at a time.

What training leaves behind is read where it lies, and nothing of the size of a large parameter is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from lawful.affine.slices import Rows, Slices, row_blocks, row_count
from lawful.conservation.combination import Combination
from lawful.conservation.potential import Potential

BLOCK = 1 << 20
"""Elements in a block: so few that what is computed from it is small beside a model, so many that calls cost little."""

Reader: TypeAlias = tuple[Slices, Potential]
"""Whose lines are summed, under which Ψ."""

Sum: TypeAlias = list[tuple[float, object]]
"""Σ factor · the line sums of a quantity that is known by a key."""

Quantity: TypeAlias = Callable[..., torch.Tensor]
"""(blocks of some tensors, ``cut=``) -> a quantity per element."""


class Block:
    """Some rows of every tensor that is asked for; what was combined once is kept."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._bodies: dict[object, torch.Tensor] = {}

    def body(self, x: Combination) -> torch.Tensor:
        """The rows of a combination, without its factor."""
        if x.key not in self._bodies:
            self._bodies[x.key] = x.body(self.rows)
        return self._bodies[x.key]

    def __call__(self, x: Combination) -> torch.Tensor:
        """The rows of a combination."""
        return self.body(x) if x.factor == 1 else x.factor * self.body(x)


def by_block(psi: Potential, quantity: Quantity, *operands: Combination) -> Callable[[Block], torch.Tensor]:
    """A quantity per element, block by block; where the rule looks at the whole weight it is computed whole."""
    if psi.elementwise:
        return lambda block: quantity(*map(block, operands), cut=block.rows)
    done = quantity(*(x.whole() for x in operands))
    return lambda block: block.rows(done)


def line_sums(reader: Reader, quantity: Quantity, *operands: torch.Tensor) -> torch.Tensor:
    """The sum of a quantity over each line, (lines,), float64."""
    (slices, psi), shape = reader, operands[0].shape
    of, rows_in_all = by_block(psi, quantity, *map(Combination, operands)), row_count(slices, shape)
    blocks = (of(Block(rows)) for rows in row_blocks([slices], shape, BLOCK))
    return slices.join([slices.sum_block(block, rows_in_all) for block in blocks])


def expand(
    readers: Sequence[Reader], weight: Combination, step: Combination | None, along: Sequence[Combination]
) -> list[list[torch.Tensor | None]]:
    """For each reader the line sums of D_Ψ(W + Δ, W), or None where Ψ is flat, then of B ⊙ V for every V; float64.

    Args:
        readers: of one parameter, and of one window of its rows.
        weight: W.
        step: Δ; None where it does not move.
        along: the directions V.
    """
    shape = weight.first.shape
    groups = {psi: [i for i, reader in enumerate(readers) if reader[1] is psi] for _, psi in readers}
    sums = {psi: _Sums(psi, [readers[i][0] for i in own], weight, step, along) for psi, own in groups.items()}
    asked = [slices for sum_ in sums.values() if sum_.asks for slices in sum_.slices]
    for rows in row_blocks(asked, shape, BLOCK):
        block = Block(rows)
        for sum_ in sums.values():
            sum_.take(block)
    found = {i: rows for psi, own in groups.items() for i, rows in zip(own, sums[psi].rows(), strict=True)}
    return [found[i] for i in range(len(readers))]


class _Sums:
    """The line sums of all readers of a parameter under one Ψ, as blocks come.

    A rate is bilinear in the tensors that optimisers leave behind: where ∂B/∂W is one number, B(W + c·x) = B(W) + c·x
    (or B(W)), and steps are taken apart likewise. So nothing of a weight's size is written down, and what several
    sums need (⟨x, x⟩, which the drift needs too) is computed once.
    """

    def __init__(
        self,
        psi: Potential,
        slices: Sequence[Slices],
        weight: Combination,
        step: Combination | None,
        along: Sequence[Combination],
    ) -> None:
        self.slices = slices
        self._rows_in_all = row_count(slices[0], weight.first.shape)
        self._products: dict[object, tuple[Combination | None, Combination]] = {}
        self._pieces: dict[object, list[list[torch.Tensor]]] = {}
        at = weight if psi.curvature is None else Combination(weight.first)
        self._feedback = by_block(psi, psi.feedback, at) if along else None
        self._bregman: Callable[[Block], torch.Tensor] | None = None
        self._sums = [self._drift(psi, weight, step), *(self._rate(psi, weight, v) for v in along)]

    def _drift(self, psi: Potential, weight: Combination, step: Combination | None) -> Sum | None:
        if not step or psi.curvature == 0:
            return None
        if psi.curvature is not None:
            return [(psi.curvature * step.factor * step.factor / 2, self._product(step, step))]
        self._bregman = by_block(psi, psi.bregman, weight, step)
        return [(1.0, self._wanted("bregman"))]

    def _rate(self, psi: Potential, weight: Combination, v: Combination) -> Sum:
        B = Combination(weight.first) if psi.is_square else None
        by = [(1.0, B), *((c, x) for c, x in weight.beside if psi.curvature)]
        terms: dict[object, float] = {}
        for c, x in by:
            for d, y in v.parts:
                key = self._product(x, y)
                terms[key] = terms.get(key, 0.0) + c * d
        return [(factor, key) for key, factor in terms.items()]

    def _product(self, x: Combination | None, y: Combination) -> object:
        """⟨x, y⟩ without their factors; ⟨B, y⟩ for None."""
        key = frozenset((x and x.key, y.key))
        self._products[key] = x, y
        return self._wanted(key)

    def _wanted(self, key: object) -> object:
        self._pieces[key] = [[] for _ in self.slices]
        return key

    @property
    def asks(self) -> bool:
        """Whether the parameter has to be read at all."""
        return bool(self._pieces)

    def take(self, block: Block) -> None:
        """Add what one block gives."""
        B = None if self._feedback is None else self._feedback(block)
        for key, (x, y) in self._products.items():
            left: Any = B if x is None else block.body(x)
            for pieces, slices in zip(self._pieces[key], self.slices, strict=True):
                pieces.append(slices.dot_block(left, block.body(y), self._rows_in_all))
        if self._bregman is not None:
            amount = self._bregman(block)
            for pieces, slices in zip(self._pieces["bregman"], self.slices, strict=True):
                pieces.append(slices.sum_block(amount, self._rows_in_all))

    def rows(self) -> Iterator[list[torch.Tensor | None]]:
        """For each reader the blocks joined, times their factors."""
        for i, slices in enumerate(self.slices):
            joined = {key: slices.join(pieces[i]) for key, pieces in self._pieces.items()}
            yield [None if terms is None else _total(terms, joined) for terms in self._sums]


def _total(terms: Sum, joined: Mapping[object, torch.Tensor]) -> torch.Tensor:
    (factor, key), *others = terms
    total = factor * joined[key]
    for factor, key in others:
        total = torch.add(total, joined[key], alpha=factor)
    return total
