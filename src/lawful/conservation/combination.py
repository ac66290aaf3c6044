"""Linear combinations of tensors that are never written down whole: steps of an optimiser, and weights before them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch


class Combination:
    """Σ c·x over tensors x of one shape, read a piece at a time, so that it needs no memory of its own.

    >>> x, y = torch.ones(3), torch.arange(3.0)
    >>> (2 * Combination(x) - Combination(y)).whole().tolist()
    [2.0, 1.0, 0.0]
    """

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._terms: dict[int, tuple[float, torch.Tensor]] = {id(x): (1.0, x) for x in tensors}

    def __rmul__(self, factor: float) -> Combination:
        """Every coefficient times ``factor``; what has none left is dropped."""
        return _of({key: (factor * c, x) for key, (c, x) in self._terms.items()})

    def __add__(self, other: Combination) -> Combination:
        """The sum; a tensor that stands in both keeps one place."""
        terms = dict(self._terms)
        for key, (c, x) in other._terms.items():
            terms[key] = (terms[key][0] + c if key in terms else c, x)
        return _of(terms)

    def __sub__(self, other: Combination) -> Combination:
        """The difference."""
        return self + -1.0 * other

    def __bool__(self) -> bool:
        """Whether anything is left in it."""
        return bool(self._terms)

    @property
    def factor(self) -> float:
        """The first coefficient: the whole is ``factor`` times :meth:`body`."""
        return next(iter(self._terms.values()))[0]

    @property
    def first(self) -> torch.Tensor:
        """The first tensor."""
        return next(iter(self._terms.values()))[1]

    def body(self, cut: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """A piece of Σ (c/factor)·x: for one tensor nothing is computed."""
        (_, x), *rest = self._terms.values()
        total = cut(x)
        for c, y in rest:
            total = torch.add(total, cut(y), alpha=c / self.factor)
        return total

    def piece(self, cut: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """A piece of the combination."""
        body = self.body(cut)
        return body if self.factor == 1 else self.factor * body

    def apply(self, linear: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """A linear function of the combination, from its values at the tensors."""
        total: torch.Tensor | None = None
        for c, x in self._terms.values():
            total = c * linear(x) if total is None else total + c * linear(x)
        assert total is not None
        return total

    def whole(self) -> torch.Tensor:
        """All of it, written down."""
        return self.piece(lambda x: x)


def _of(terms: Mapping[int, tuple[float, torch.Tensor]]) -> Combination:
    made = Combination()
    made._terms = {key: (c, x) for key, (c, x) in terms.items() if c}
    return made


Tensors: TypeAlias = Mapping[str, torch.Tensor]
"""Parameters, or a step of them, by dotted name."""

Moves: TypeAlias = Mapping[str, Combination]
"""A step by dotted name; what is not named does not move."""


def moves(tensors: Tensors) -> dict[str, Combination]:
    """Tensors as combinations of themselves."""
    return {name: Combination(x) for name, x in tensors.items()}
