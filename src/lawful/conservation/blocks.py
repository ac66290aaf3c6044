"""One pass over a parameter for everything that laws ask of it, a block of rows at a time.

What training leaves behind is read where it lies, and nothing of the size of a large parameter is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from lawful.affine.slices import Slices, row_blocks, row_count
from lawful.conservation.combination import Combination, totals
from lawful.conservation.compiled import in_one_pass
from lawful.conservation.potential import Cut, Potential

BLOCK = 1 << 20
"""Elements in a block: so few that what is computed from it is small beside a model, so many that calls cost little."""

Reader: TypeAlias = tuple[Slices, Potential]
"""Whose lines are summed, under which Ψ."""

Sum: TypeAlias = dict[int, float]
"""Number of a quantity -> what the sum counts it with."""

Quantity: TypeAlias = Callable[..., torch.Tensor]
"""(blocks of some tensors, ``cut=``) -> a quantity per element."""


class Block:
    """Some rows of every tensor that is asked for; what was combined once is kept."""

    def __init__(self, rows: Cut) -> None:
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
    readers: Sequence[Reader],
    weight: Combination,
    step: Combination | None,
    along: Sequence[Combination],
    *,
    at_once: bool = False,
) -> list[torch.Tensor | None]:
    """For each reader the line sums of D_Ψ(W + Δ, W), then of B ⊙ V for every V: (1 + directions, lines), float64.

    None where nothing is to be summed: Ψ is flat, or W does not move, and no direction does.

    Args:
        readers: of one parameter, and of one window of its rows.
        weight: W.
        step: Δ; None where it does not move.
        along: the directions V; an empty one is 0.
        at_once: read every tensor once, by compiled code, if that can be done.
    """
    shape = weight.first.shape
    groups = {psi: [i for i, reader in enumerate(readers) if reader[1] is psi] for _, psi in readers}
    sums = [_Sums(psi, [readers[i][0] for i in own], weight, step, along, at_once) for psi, own in groups.items()]
    asked = [sum_ for sum_ in sums if sum_.asks]
    if not (at_once and _take_at_once(asked)):
        for rows in row_blocks([slices for sum_ in asked for slices in sum_.slices], shape, BLOCK):
            block = Block(rows)
            for sum_ in asked:
                sum_.take(block)
    every = [one for own, sum_ in zip(groups.values(), sums, strict=True) for one in zip(own, sum_.rows(), strict=True)]
    return [rows for _, rows in sorted(every, key=lambda one: one[0])]


def _take_at_once(asked: Sequence[_Sums]) -> bool:
    if not all(sum_.is_bilinear for sum_ in asked):
        return False
    found = in_one_pass([(list(sum_.products()), sum_.slices) for sum_ in asked])
    if found is None:
        return False
    for sum_, lines in zip(asked, found, strict=True):
        sum_.put(lines)
    return True


class _Sums:
    """The line sums of all readers of a parameter under one Ψ, as blocks come.

    A rate is bilinear in the tensors that optimisers leave behind: where ∂B/∂W is one number, B(W + c·x) = B(W) + c·x
    (or B(W)), and steps are taken apart likewise. So nothing of a weight's size is written down, and what several
    sums need (⟨x, x⟩, which the drift needs too) is computed once. Compiled code combines tensors as it reads them:
    for it a W that is its own B stays whole.
    """

    def __init__(
        self,
        psi: Potential,
        slices: Sequence[Slices],
        weight: Combination,
        step: Combination | None,
        along: Sequence[Combination],
        whole: bool,
    ) -> None:
        self.slices = slices
        self._rows_in_all = row_count(slices[0], weight.first.shape)
        self._quantities: dict[object, int] = {}
        self._products: list[tuple[Combination | None, Combination]] = []
        at = weight if psi.curvature is None else Combination(weight.first)
        self._feedback = by_block(psi, psi.feedback, at) if along else None
        self._bregman: Callable[[Block], torch.Tensor] | None = None
        by: list[tuple[float, Combination | None]] = [(weight.factor, weight)]
        if not (psi.is_square and whole):
            B = Combination(weight.first) if psi.is_square else None
            by = [(1.0, B), *(weight.beside if psi.curvature else ())]
        self._sums = [self._drift(psi, weight, step), *(self._rate(by, v) for v in along)]
        self._lines: list[list[torch.Tensor]] = [[] for _ in slices]
        self._found: list[torch.Tensor] = []

    def _drift(self, psi: Potential, weight: Combination, step: Combination | None) -> Sum:
        if not step or psi.curvature == 0:
            return {}
        if psi.curvature is not None:
            return {self._product(step, step): psi.curvature * step.factor * step.factor / 2}
        self._bregman = by_block(psi, psi.bregman, weight, step)
        return {self._quantities.setdefault("bregman", len(self._quantities)): 1.0}

    def _rate(self, by: Sequence[tuple[float, Combination | None]], v: Combination) -> Sum:
        terms: Sum = {}
        for d, y in v.parts if v else ():
            for c, x in by:
                k = self._product(x, y)
                terms[k] = terms.get(k, 0.0) + c * d
        return terms

    def _product(self, x: Combination | None, y: Combination) -> int:
        """The number of ⟨x, y⟩ without their factors; of ⟨B, y⟩ for None."""
        key = frozenset((x and x.key, y.key))
        if key not in self._quantities:
            self._quantities[key] = len(self._quantities)
            self._products.append((x, y))
        return self._quantities[key]

    @property
    def asks(self) -> bool:
        """Whether the parameter has to be read at all."""
        return bool(self._quantities)

    @property
    def is_bilinear(self) -> bool:
        """Whether products of tensors are all that is to be summed."""
        return self._bregman is None

    def products(self) -> Iterator[tuple[Combination, Combination]]:
        """What is to be summed."""
        B = Combination()
        if self._feedback is not None and any([x is None for x, _ in self._products]):
            B = Combination(self._feedback(Block(lambda x: x)))
        return ((B if x is None else x, y) for x, y in self._products)

    def put(self, lines: Sequence[np.ndarray]) -> None:
        """Take the sums of :meth:`products`, (products, lines) for each reader."""
        counts = np.array([[row.get(k, 0.0) for k in range(len(self._quantities))] for row in self._sums])
        self._found = [torch.from_numpy(counts @ own) for own in lines]

    def take(self, block: Block) -> None:
        """Add what one block gives."""
        B = None if self._feedback is None else self._feedback(block)
        bregman = [] if self._bregman is None else [self._bregman(block)]
        bodies: list[tuple[Any, torch.Tensor]] = [
            (B if x is None else block.body(x), block.body(y)) for x, y in self._products
        ]
        for lines, slices in zip(self._lines, self.slices, strict=True):
            sums = [slices.sum_block(amount, self._rows_in_all) for amount in bregman]
            sums += [slices.dot_block(x, y, self._rows_in_all) for x, y in bodies]
            lines.append(torch.stack(sums))

    def rows(self) -> Sequence[torch.Tensor | None]:
        """For each reader the blocks joined, and added up."""
        return self._found or [self._of(*one) for one in zip(self.slices, self._lines, strict=True)]

    def _of(self, slices: Slices, lines: Sequence[torch.Tensor]) -> torch.Tensor | None:
        return totals(self._sums, dict(enumerate(slices.join(lines)))) if lines else None
