"""The drift ½k‖Δ‖² of many laws over many steps, where W need not be looked at.

A ledger's step on small laws is all calls. So a step only takes the norms, lays them end to end and adds their squares
up; they are weighed and sorted into laws when somebody asks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lawful.affine.slices import Rows, Slices, row_blocks, row_count
from lawful.conservation.blocks import BLOCK
from lawful.conservation.combination import Combination
from lawful.conservation.compiled import SquaredNorms


class Lines:
    """The lines of one parameter, and what Σ ‖line‖² is for.

    Args:
        slices: the lines.
    """

    def __init__(self, slices: Slices) -> None:
        self.slices = slices
        self._uses: list[tuple[float, torch.Tensor]] = []
        self._rows = 0
        self._blocks: list[Rows] = []

    def use(self, weight: float, numbers: torch.Tensor) -> None:
        """Let weight · ‖line‖² go to the number of each line, (lines,); −1 is nowhere."""
        self._uses.append((weight, numbers))

    def norms(self, step: Combination) -> torch.Tensor:
        """‖step[line]‖ without its factor (up to the sign, where a line is one element), (lines,)."""
        if not self._blocks:
            self._rows = row_count(self.slices, step.shape)
            self._blocks = list(row_blocks([self.slices], step.shape, BLOCK))
        norms = [self.slices.norm_block(step.body(rows), self._rows) for rows in self._blocks]
        return norms[0] if len(norms) == 1 else self.slices.join([block.square() for block in norms]).sqrt()

    def add_to(self, total: torch.Tensor, squares: torch.Tensor) -> None:
        """Add what Σ ‖line‖² gives to ``total``, (numbers + 1,), whose last element takes what goes nowhere."""
        for weight, numbers in self._uses:
            total.index_add_(0, numbers.to(total.device) % len(total), squares, alpha=weight)


class LineNorms:
    """Σ_t ‖Δ_t[line]‖² over steps Δ_t, of all lines of the parameters that move.

    Args:
        lines: by parameter.
        at_once: read every tensor once, by compiled code, where that can be done.
    """

    def __init__(self, lines: Sequence[Sequence[Lines]], *, at_once: bool = False) -> None:
        self._lines = lines
        self._compiled = [SquaredNorms([one.slices for one in own]) for own in lines] if at_once else []
        self._sums: dict[tuple[int, ...], torch.Tensor] = {}
        """Which parameters moved -> the sums, float64."""

    def add(self, moved: Sequence[tuple[int, Combination]]) -> None:
        """One step: which parameters move, and by how much."""
        left = [(k, step) for k, step in moved if not self._compiled[k].add(step)] if self._compiled else moved
        steps = [(lines, step) for k, step in left for lines in self._lines[k]]
        if not steps:
            return
        factor = steps[0][1].factor
        every = [lines.norms(step) for lines, step in steps]
        if any([step.factor != factor for _, step in steps]):  # learning rates differ
            every = [step.factor / factor * norms.double() for norms, (_, step) in zip(every, steps, strict=True)]
        norms = torch.cat(every).double()
        key = tuple([k for k, _ in left])
        if key not in self._sums:
            self._sums[key] = torch.zeros_like(norms)
        self._sums[key].addcmul_(norms, norms, value=factor * factor)

    def take_to(self, total: torch.Tensor) -> None:
        """Add what the laws make of it to ``total``, (numbers + 1,), and begin anew."""
        for key, sums in self._sums.items():
            every = [lines for k in key for lines in self._lines[k]]
            for lines, squares in zip(every, sums.split([lines.slices.count for lines in every]), strict=True):
                lines.add_to(total, squares)
        self._sums.clear()
        for own, compiled in zip(self._lines, self._compiled, strict=False):
            for lines, squares in zip(own, compiled.take() or (), strict=False):
                lines.add_to(total, squares.to(total.device))
