"""What every cause has added to q."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class Books:
    """Cause -> its sum so far, rows of one tensor, so that a step is one addition.

    >>> books = Books({})
    >>> books.add(("rule", "momentum"), torch.ones(2, 3))
    >>> books.add(("momentum",), torch.ones(1, 3))
    >>> {cause: part.tolist() for cause, part in books.parts.items()}
    {'rule': [1.0, 1.0, 1.0], 'momentum': [2.0, 2.0, 2.0]}
    """

    def __init__(self, parts: Mapping[str, torch.Tensor]) -> None:
        self._causes, self._sums = tuple(parts), torch.stack(list(parts.values())) if parts else torch.empty(0, 0)

    @property
    def parts(self) -> dict[str, torch.Tensor]:
        """The sums as they are now; what is added later leaves them alone."""
        return dict(zip(self._causes, self._sums, strict=True))

    def add(self, causes: tuple[str, ...], amounts: torch.Tensor) -> None:
        """One row of amounts for every cause."""
        if causes == self._causes:
            self._sums = self._sums + amounts
            return
        parts = self.parts
        for cause, amount in zip(causes, amounts, strict=True):
            parts[cause] = parts[cause] + amount if cause in parts else amount
        self._causes, self._sums = tuple(parts), torch.stack(list(parts.values()))
