"""The drift ½k‖Δ‖² of many laws over many steps, where W need not be looked at.

A ledger's step on small laws is all calls, so a step only adds the squares of its lines' norms, in two calls for every
way to cut a parameter; they are weighed and sorted into laws when somebody asks.
"""

from __future__ import annotations

import torch

from lawful.affine.slices import Rows, Slices, row_count
from lawful.conservation.combination import Combination


class LineNorms:
    """Σ_t ‖Δ_t[line]‖² over steps, for contiguous lines of one parameter that laws read; weight · it goes to numbers.

    Args:
        slices: the lines.
    """

    def __init__(self, slices: Slices) -> None:
        self._slices = slices
        self._uses: list[tuple[float, torch.Tensor]] = []
        self._rows = 0
        self._sum: torch.Tensor | None = None

    def use(self, weight: float, numbers: torch.Tensor) -> None:
        """Add weight · Σ ‖line‖² to the number of each line, (lines,); −1 is nowhere."""
        self._uses.append((weight, numbers))

    def add(self, step: Combination) -> None:
        """One step Δ, a multiple of one tensor."""
        x = step.first
        if self._sum is None:
            self._rows = row_count(self._slices, x.shape)
            self._sum = torch.zeros(self._slices.count, dtype=torch.float64, device=x.device)
        start = self._slices.window[0] if self._slices.window else 0
        norms = self._slices.norm_block(Rows(start, start + self._rows)(x), self._rows).double()
        self._sum.addcmul_(norms, norms, value=step.factor * step.factor)

    def take_to(self, total: torch.Tensor) -> None:
        """Add what came since the last call to ``total``, (numbers + 1,); its last element takes what goes nowhere."""
        if self._sum is not None:
            for weight, numbers in self._uses:
                total.index_add_(0, numbers.to(total.device) % len(total), self._sum, alpha=weight)
            self._sum.zero_()
