"""One pass over a parameter for everything that laws ask of it, a block of rows at a time.

What training leaves behind is read from memory once; what is computed from a block stays in the cache, and nothing of
the size of a parameter is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch

from lawful.affine.slices import Rows, Slices, row_blocks, row_count
from lawful.conservation.combination import Combination
from lawful.conservation.potential import Potential

BLOCK = 1 << 17
"""Elements in a block: so few that what is computed from one stays in the cache, so many that calls cost little."""

Reader: TypeAlias = tuple[Slices, Potential]
"""Whose lines are summed, under which Ψ."""

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
    if not along and all(_needs_norms_only(reader, step) for reader in readers):
        return [[_norms(reader, step)] for reader in readers]
    shape = weight.first.shape
    groups = {psi: [i for i, reader in enumerate(readers) if reader[1] is psi] for _, psi in readers}
    sums = {psi: _Sums(psi, [readers[i][0] for i in own], weight, step, along) for psi, own in groups.items()}
    asked = [slices for sum_ in sums.values() for slices in sum_.slices if along or sum_.step]
    for rows in row_blocks(asked, shape, BLOCK):
        block = Block(rows)
        for sum_ in sums.values():
            sum_.take(block)
    found = {i: rows for psi, own in groups.items() for i, rows in zip(own, sums[psi].rows(), strict=True)}
    return [found[i] for i in range(len(readers))]


def _needs_norms_only(reader: Reader, step: Combination | None) -> bool:
    """Whether D_Ψ is a multiple of the squared norms of lines that can be read in one go, or zero."""
    slices, psi = reader
    return psi.curvature == 0 or not step or (psi.curvature is not None and step.is_one and slices.is_contiguous)


def _norms(reader: Reader, step: Combination | None) -> torch.Tensor | None:
    slices, psi = reader
    if not step or not psi.curvature:
        return None
    (rows,) = row_blocks([slices], step.first.shape, step.first.numel())
    squares = slices.join([slices.square_block(rows(step.first), row_count(slices, step.first.shape))])
    return psi.curvature * step.factor * step.factor / 2 * squares


class _Sums:
    """The line sums of all readers of a parameter under one Ψ, as blocks come."""

    def __init__(
        self,
        psi: Potential,
        slices: Sequence[Slices],
        weight: Combination,
        step: Combination | None,
        along: Sequence[Combination],
    ) -> None:
        self.slices, self.along = slices, along
        self.step = step if step and psi.curvature != 0 else None
        self._rows_in_all = row_count(slices[0], weight.first.shape)
        # a B that does not depend on W takes any tensor of its shape: W itself need not be read
        at = Combination(weight.first) if psi.curvature == 0 else weight
        self._feedback = by_block(psi, psi.feedback, at) if along else None
        self._curvature = psi.curvature
        self._bregman = by_block(psi, psi.bregman, weight, step) if step and psi.curvature is None else None
        self._drifts: list[list[torch.Tensor]] = [[] for _ in slices]
        self._rates: list[list[list[torch.Tensor]]] = [[[] for _ in along] for _ in slices]

    def take(self, block: Block) -> None:
        """Add what one block gives."""
        if self._feedback is not None:
            B = self._feedback(block)
            for k, v in enumerate(self.along):
                product = B * block.body(v)
                for rates, slices in zip(self._rates, self.slices, strict=True):
                    rates[k].append(slices.sum_block(product, self._rows_in_all))
        if self.step is None:
            return
        bent = None if self._bregman is None else self._bregman(block)
        for drifts, slices in zip(self._drifts, self.slices, strict=True):
            if bent is None:
                drifts.append(slices.square_block(block.body(self.step), self._rows_in_all))
            else:
                drifts.append(slices.sum_block(bent, self._rows_in_all))

    def rows(self) -> Iterator[list[torch.Tensor | None]]:
        """For each reader the blocks joined, times their factors."""
        for slices, drifts, rates in zip(self.slices, self._drifts, self._rates, strict=True):
            joined = [v.factor * slices.join(sums) for v, sums in zip(self.along, rates, strict=True)]
            if self.step is None:
                yield [None, *joined]
            else:
                factor = 1.0 if self._curvature is None else self._curvature * self.step.factor * self.step.factor / 2
                yield [factor * slices.join(drifts), *joined]
