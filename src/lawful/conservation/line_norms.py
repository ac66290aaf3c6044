"""The drift ½k‖Δ‖² of many laws at once, where lines can be read in one go and W need not be looked at.

A step of the ledger on small laws is all calls: the norms of all lines are laid end to end, so that squaring, weighing
and sorting them into laws is four calls a step and not five a term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lawful.affine.slices import Rows, Slices, row_count
from lawful.conservation.combination import Combination


@dataclass(frozen=True)
class Place:
    """Where the squared norms of one parameter's lines go: number[index] += weight · ‖line‖²; index −1 is nowhere."""

    slices: Slices
    index: torch.Tensor
    weight: float


class LineNorms:
    """Σ weight · factor² · ‖x[line]‖² over the places of the parameters that move, for Δ = factor · x.

    Args:
        places: by parameter.
    """

    def __init__(self, places: Sequence[Sequence[Place]]) -> None:
        self._places = places
        self._plans: dict[object, tuple[torch.Tensor, torch.Tensor]] = {}

    def add_to(self, total: torch.Tensor, moved: Sequence[tuple[int, Combination]]) -> None:
        """Add to ``total``, (numbers + 1,) float64, whose last element takes what belongs nowhere.

        Args:
            total: the sums so far.
            moved: which parameters move, and by how much: multiples of one tensor.
        """
        places = [(place, step) for k, step in moved for place in self._places[k]]
        if places:
            index, weights = self._plan(tuple(k for k, _ in moved), total)
            norms = torch.cat([_norms(place.slices, step.first) for place, step in places])
            squares = norms.double().square_().mul_(weights)
            factors = {step.factor for _, step in places}
            if len(factors) > 1:  # learning rates differ
                squares *= torch.cat([squares.new_full(place.index.shape, step.factor**2) for place, step in places])
            total.index_add_(0, index, squares, alpha=factors.pop() ** 2 if len(factors) == 1 else 1)

    def _plan(self, moving: tuple[int, ...], total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        key = moving, total.device
        if key not in self._plans:
            places = [place for k in moving for place in self._places[k]]
            index = torch.cat([place.index for place in places]).remainder(len(total))
            weights = torch.cat([torch.full(place.index.shape, place.weight, dtype=total.dtype) for place in places])
            self._plans[key] = index.to(total.device), weights.to(total.device)
        return self._plans[key]


def _norms(slices: Slices, x: torch.Tensor) -> torch.Tensor:
    """‖x[line]‖ (up to the sign, where a line is one element), (lines,)."""
    rows = row_count(slices, x.shape)
    start = slices.window[0] if slices.window else 0
    return slices.norm_block(Rows(start, start + rows)(x), rows)
