"""One pass over a parameter for everything that laws ask of it, a block of rows at a time.

What training leaves behind is read from memory once; what is computed from a block stays in the cache, and nothing of
the size of a parameter is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from lawful.affine.slices import BLOCK, Rows, Slices, row_blocks, row_count
from lawful.conservation.combination import Combination
from lawful.conservation.potential import Potential

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
    blocks = (of(Block(rows)) for rows in row_blocks([slices], shape))
    return slices.join([slices.sum_block(block, rows_in_all) for block in blocks])


def expand(
    readers: Sequence[Reader], weight: Combination, step: Combination | None, along: Sequence[Combination]
) -> list[torch.Tensor]:
    """For each reader the line sums of D_Ψ(W + Δ, W), then of B ⊙ V for every V: (1 + V's, lines), float64.

    Args:
        readers: of one parameter, and of one window of its rows.
        weight: W.
        step: Δ; None where it does not move.
        along: the directions V.
    """
    shape, curvature = weight.first.shape, {psi: psi.curvature for _, psi in readers}
    # a B that does not depend on W takes any tensor of its shape: W itself need not be read
    at = {psi: Combination(weight.first) if c == 0 else weight for psi, c in curvature.items()}
    back = {psi: by_block(psi, psi.feedback, w) for psi, w in at.items()} if along else {}
    bend = {psi: by_block(psi, psi.bregman, weight, step) for psi, c in curvature.items() if step and c is None}
    plain = not along and step and step.is_one and all(slices.is_contiguous for slices, _ in readers)
    rows_in_all, found = row_count(readers[0][0], shape), [_Sums(len(along)) for _ in readers]
    for rows in row_blocks([slices for slices, _ in readers], shape, shape.numel() if plain else BLOCK):
        block = Block(rows)
        feedback = {psi: of(block) for psi, of in back.items()}
        products = {psi: [B * block.body(v) for v in along] for psi, B in feedback.items()}
        bends = {psi: of(block) for psi, of in bend.items()}
        for own, (slices, psi) in zip(found, readers, strict=True):
            for sums, product in zip(own.rates, products.get(psi, ()), strict=True):
                sums.append(slices.sum_block(product, rows_in_all))
            if psi in bends:
                own.drift.append(slices.sum_block(bends[psi], rows_in_all))
            elif step and curvature[psi]:
                own.drift.append(slices.square_block(block.body(step), rows_in_all))
    return [own.rows(reader, step, along) for own, reader in zip(found, readers, strict=True)]


class _Sums:
    """Line sums of one reader, a list of blocks for the drift and for every direction."""

    def __init__(self, directions: int) -> None:
        self.drift: list[torch.Tensor] = []
        self.rates: list[list[torch.Tensor]] = [[] for _ in range(directions)]

    def rows(self, reader: Reader, step: Combination | None, along: Sequence[Combination]) -> torch.Tensor:
        """(1 + directions, lines): zero drift where nothing bends, and everything times its factors."""
        slices, psi = reader
        rates = [v.factor * slices.join(sums) for v, sums in zip(along, self.rates, strict=True)]
        if not self.drift or step is None:
            drift = torch.zeros_like(rates[0]) if rates else torch.zeros(slices.count, dtype=torch.float64)
        else:
            factor = 1.0 if psi.curvature is None else psi.curvature * step.factor**2 / 2
            drift = factor * slices.join(self.drift)
        return torch.stack([drift, *rates])
