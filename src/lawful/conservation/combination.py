"""Combinations of tensors that are never written down whole: steps of an optimiser, and weights before them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch


class Quotient:
    """m / (√v + eps), by element: the direction of Adam's step, which is not written down either.

    >>> Quotient(torch.ones(2), torch.tensor([4.0, 9.0]), 0.0).piece(lambda x: x).tolist()
    [0.5, 0.3333333432674408]
    """

    def __init__(self, m: torch.Tensor, v: torch.Tensor, eps: float) -> None:
        self.m, self.v, self.eps = m, v, eps
        self.shape = m.shape

    def piece(self, cut: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """What the cut cuts of it."""
        root = cut(self.v).sqrt().add_(self.eps)
        return torch.div(cut(self.m), root, out=root)


def _whole(x: torch.Tensor) -> torch.Tensor:
    return x


Leaf: TypeAlias = torch.Tensor | Quotient


def _piece(x: Leaf, cut: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    return x.piece(cut) if isinstance(x, Quotient) else cut(x)


class Combination:
    """factor · Σ c·x over tensors and quotients x of one shape, the first c being 1; read by pieces, needing no memory.

    >>> x, y = torch.ones(3), torch.arange(3.0)
    >>> (2 * Combination(x) - Combination(y)).whole().tolist()
    [2.0, 1.0, 0.0]
    """

    def __init__(self, x: Leaf | None = None) -> None:
        self.factor = 1.0
        self.cancels = False
        self.terms: tuple[tuple[float, Leaf], ...] = () if x is None else ((1.0, x),)
        self._key: tuple[tuple[float, int], ...] | None = None

    def __rmul__(self, factor: float) -> Combination:
        """Times a number; nothing is left of it at 0."""
        return _of(factor * self.factor, self.terms if factor else ())

    def __add__(self, other: Combination) -> Combination:
        """The sum; a tensor that stands in both keeps one place."""
        if not other:
            return self
        terms: dict[int, tuple[float, Leaf]] = {}
        for part in (self, other):
            for c, x in part.terms:
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
        return bool(self.terms)

    @property
    def first(self) -> torch.Tensor:
        """The first tensor, of one that begins with a tensor, as weights do."""
        leaf = self.terms[0][1]
        assert isinstance(leaf, torch.Tensor)
        return leaf

    @property
    def shape(self) -> torch.Size:
        """That of all its tensors."""
        return self.terms[0][1].shape

    @property
    def beside(self) -> list[tuple[float, Combination]]:
        """What it is beside its first tensor: coefficients, and the tensors."""
        rest = [(self.factor * c, Combination(x)) for c, x in self.terms[1:]]
        return rest if self.factor == 1 else [(self.factor - 1, Combination(self.first)), *rest]

    @property
    def parts(self) -> list[tuple[float, Combination]]:
        """Itself as coefficients and tensors; in one piece where the terms all but cancel."""
        if self.cancels:
            body = _of(1.0, self.terms)
            return [(self.factor, body)]
        return [(self.factor * c, Combination(x)) for c, x in self.terms]

    @property
    def key(self) -> tuple[tuple[float, int], ...]:
        """Equal for combinations that differ in their factors only."""
        if self._key is None:  # a cached_property takes a lock, which costs more than the key
            self._key = tuple([(c, id(x)) for c, x in self.terms])
        return self._key

    def body(self, cut: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """A piece of Σ c·x, without the factor: for a single tensor nothing is computed."""
        total = _piece(self.terms[0][1], cut)
        for c, x in self.terms[1:]:
            total = torch.add(total, _piece(x, cut), alpha=c)
        return total

    def whole(self) -> torch.Tensor:
        """All of it, written down."""
        body = self.body(_whole)
        return body if self.factor == 1 else self.factor * body


def totals(counts: Sequence[Mapping[Any, float]], quantities: Mapping[Any, torch.Tensor]) -> torch.Tensor:
    """Σ count · quantity for each of the counts, stacked; of one without any, zeros.

    >>> totals([{"a": 2.0, "b": -1.0}, {}], {"a": torch.ones(2), "b": torch.arange(2.0)}).tolist()
    [[2.0, 1.0], [0.0, 0.0]]
    """
    zero = torch.zeros_like(next(iter(quantities.values())))
    rows = []
    for counts_of_one in counts:
        total = zero
        for key, count in counts_of_one.items():
            total = torch.add(total, quantities[key], alpha=count)
        rows.append(total)
    return torch.stack(rows)


def values(linear: Callable[[torch.Tensor], torch.Tensor], directions: Sequence[Combination]) -> torch.Tensor:
    """A linear function of every combination, stacked, from its values at the tensors.

    >>> x, y = torch.ones(3), torch.arange(3.0)
    >>> values(lambda v: v.sum().reshape(1), [Combination(x), Combination(x) - Combination(y), Combination()]).tolist()
    [[3.0], [0.0], [0.0]]
    """
    leaves = {id(leaf): leaf for v in directions for _, leaf in v.terms}
    counts = [{id(leaf): v.factor * c for c, leaf in v.terms} for v in directions]
    return totals(counts, {key: linear(_piece(leaf, _whole)) for key, leaf in leaves.items()})


def _of(factor: float, terms: tuple[tuple[float, Leaf], ...]) -> Combination:
    made = Combination()
    made.factor, made.terms = factor, terms
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
