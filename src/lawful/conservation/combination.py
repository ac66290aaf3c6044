"""Linear combinations of tensors that are never written down whole: steps of an optimiser, and weights before them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import torch


class Combination:
    """factor · Σ c·x over tensors x of one shape, the first c being 1; read a piece at a time, it needs no memory.

    >>> x, y = torch.ones(3), torch.arange(3.0)
    >>> (2 * Combination(x) - Combination(y)).whole().tolist()
    [2.0, 1.0, 0.0]
    """

    def __init__(self, x: torch.Tensor | None = None) -> None:
        self.factor = 1.0
        self.cancels = False
        self._terms: tuple[tuple[float, torch.Tensor], ...] = () if x is None else ((1.0, x),)
        self._key: tuple[tuple[float, int], ...] | None = None

    def __rmul__(self, factor: float) -> Combination:
        """Times a number; nothing is left of it at 0."""
        return _of(factor * self.factor, self._terms if factor else ())

    def __add__(self, other: Combination) -> Combination:
        """The sum; a tensor that stands in both keeps one place."""
        if not other:
            return self
        terms: dict[int, tuple[float, torch.Tensor]] = {}
        for part in (self, other):
            for c, x in part._terms:
                terms[id(x)] = (part.factor * c + (terms[id(x)][0] if id(x) in terms else 0.0), x)
        left = [(c, x) for c, x in terms.values() if c]
        factor = left[0][0] if left else 1.0
        return _of(factor, tuple((c / factor, x) for c, x in left))

    def __sub__(self, other: Combination) -> Combination:
        """The difference."""
        return self + -1.0 * other

    def minus(self, other: Combination) -> Combination:
        """The difference of two that are all but equal: never to be taken apart."""
        difference = self - other
        difference.cancels = True
        return difference

    def __bool__(self) -> bool:
        """Whether anything is left in it."""
        return bool(self._terms)

    @property
    def first(self) -> torch.Tensor:
        """The first tensor."""
        return self._terms[0][1]

    @property
    def beside(self) -> list[tuple[float, Combination]]:
        """What it is beside its first tensor: coefficients, and the tensors."""
        rest = [(self.factor * c, Combination(x)) for c, x in self._terms[1:]]
        return rest if self.factor == 1 else [(self.factor - 1, Combination(self.first)), *rest]

    @property
    def parts(self) -> list[tuple[float, Combination]]:
        """Itself as coefficients and tensors; in one piece where the terms all but cancel."""
        if self.cancels:
            body = _of(1.0, self._terms)
            return [(self.factor, body)]
        return [(self.factor * c, Combination(x)) for c, x in self._terms]

    @property
    def is_one(self) -> bool:
        """Whether it is a multiple of one tensor."""
        return len(self._terms) == 1

    @property
    def key(self) -> tuple[tuple[float, int], ...]:
        """Equal for combinations that differ in their factors only."""
        if self._key is None:  # a cached_property takes a lock, which costs more than the key
            self._key = tuple([(c, id(x)) for c, x in self._terms])
        return self._key

    def body(self, cut: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """A piece of Σ c·x, without the factor: for a single tensor nothing is computed."""
        total = cut(self.first)
        for c, x in self._terms[1:]:
            total = torch.add(total, cut(x), alpha=c)
        return total

    def whole(self) -> torch.Tensor:
        """All of it, written down."""
        body = self.body(lambda x: x)
        return body if self.factor == 1 else self.factor * body

    def apply(self, linear: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """A linear function of the combination, from its values at the tensors."""
        values = [c * linear(x) for c, x in self._terms]
        return self.factor * torch.stack(values).sum(0)


def _of(factor: float, terms: tuple[tuple[float, torch.Tensor], ...]) -> Combination:
    made = Combination()
    made.factor, made._terms = factor, terms
    return made


Tensors: TypeAlias = Mapping[str, torch.Tensor]
"""Parameters, or a step of them, by dotted name."""

Moves: TypeAlias = Mapping[str, Combination]
"""A step by dotted name; what is not named does not move."""


class Before(Mapping[str, Combination]):
    """The weights before a step, W − Δ, taken apart where they are asked for."""

    def __init__(self, now: Tensors, step: Moves) -> None:
        self._now, self._step = now, step

    def __getitem__(self, name: str) -> Combination:
        """W − Δ of one parameter."""
        now = Combination(self._now[name])
        return now - self._step[name] if name in self._step else now

    def __iter__(self) -> Iterator[str]:
        """Over the names of all parameters."""
        return iter(self._now)

    def __len__(self) -> int:
        """The number of parameters."""
        return len(self._now)


def moves(tensors: Tensors) -> dict[str, Combination]:
    """Tensors as combinations of themselves."""
    return {name: Combination(x) for name, x in tensors.items()}
