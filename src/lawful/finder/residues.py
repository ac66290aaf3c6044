"""Arithmetic modulo a prime, batched in float64, with nested dual numbers for exact directional derivatives.

A residue is a float64 integer in [-p/2, p/2]; with p < 2²³ a sum of 512 products stays below 2⁵³, so a BLAS matrix
product of residues is exact. A :class:`Dual` is ``re + ε im`` with ε² = 0, and its parts may be dual again: k nested
levels carry the k-th order mixed derivatives that a bracket of k + 1 fields needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, TypeAlias

import numpy as np

PRIME: Final = 8388593
"""The largest prime below 2²³."""

_EXACT_TERMS: Final = 512
_BLOCK: Final = 512
_CACHED: Final = 1 << 15
_SMALL: Final = 16

Number: TypeAlias = Any
"""A residue array, a :class:`Dual` of such, or None for an exact zero."""


def reduce(x: np.ndarray) -> np.ndarray:
    """The centred residue of an array of exact integers below 2⁵³; zero modulo p becomes exactly 0."""
    if x.size <= _CACHED:
        return x - np.rint(x * (1.0 / PRIME)) * PRIME
    return _reduce_in_place(np.array(x, dtype=np.float64, order="C"))


def _reduce_in_place(x: np.ndarray) -> np.ndarray:
    """Piece by piece, so that the three passes over a large array stay in the cache."""
    line = x.reshape(-1)
    quotient = np.empty(min(_CACHED, line.size))
    for start in range(0, line.size, _CACHED):
        piece = line[start : start + _CACHED]
        q = quotient[: piece.size]
        np.multiply(piece, 1.0 / PRIME, out=q)
        np.rint(q, out=q)
        np.multiply(q, PRIME, out=q)
        np.subtract(piece, q, out=piece)
    return x


@dataclass(slots=True)
class Dual:
    """``re + ε im``."""

    re: Number
    im: Number


def add(a: Number, b: Number) -> Number:
    """A + b."""
    if a is None:
        return b
    if b is None:
        return a
    if isinstance(a, Dual):
        return Dual(add(a.re, b.re), add(a.im, b.im)) if isinstance(b, Dual) else Dual(add(a.re, b), a.im)
    if isinstance(b, Dual):
        return Dual(add(a, b.re), b.im)
    return reduce(a + b)


def scale(a: Number, factor: float) -> Number:
    """``factor`` · a for a constant residue."""
    if a is None:
        return None
    if isinstance(a, Dual):
        return Dual(scale(a.re, factor), scale(a.im, factor))
    return reduce(a * factor)


def bilinear(op: Callable[[np.ndarray, np.ndarray], np.ndarray], a: Number, b: Number) -> Number:
    """op(a, b) for an op that is linear in each argument and returns residues (Leibniz on the dual parts)."""
    if a is None or b is None:
        return None
    if isinstance(a, Dual) and isinstance(b, Dual):
        cross = add(bilinear(op, a.re, b.im), bilinear(op, a.im, b.re))
        return Dual(bilinear(op, a.re, b.re), cross)
    if isinstance(a, Dual):
        return Dual(bilinear(op, a.re, b), bilinear(op, a.im, b))
    if isinstance(b, Dual):
        return Dual(bilinear(op, a, b.re), bilinear(op, a, b.im))
    return op(a, b)


def linear(op: Callable[[np.ndarray], np.ndarray], a: Number) -> Number:
    """op(a) for a linear op without arithmetic (transpose, slice, reshape)."""
    if a is None:
        return None
    return Dual(linear(op, a.re), linear(op, a.im)) if isinstance(a, Dual) else op(a)


def _times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return reduce(a * b)


def _outer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return reduce(a[..., :, None] * b[..., None, :])


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A @ b of residue arrays, exact: the inner axis is cut into pieces of 512."""
    inner = a.shape[-1]
    if inner <= _EXACT_TERMS:
        return reduce(a @ b)
    total = np.zeros(())
    for start in range(0, inner, _EXACT_TERMS):
        piece = slice(start, start + _EXACT_TERMS)
        total = reduce(total + reduce(a[..., piece] @ b[..., piece, :]))
    return total


def _vector_matrix(a: np.ndarray, w: np.ndarray) -> np.ndarray:
    return product(a, w) if w.ndim == 2 else product(a[..., None, :], w)[..., 0, :]


def times(a: Number, b: Number) -> Number:
    """Element by element."""
    return bilinear(_times, a, b)


def outer(a: Number, b: Number) -> Number:
    """(…, j), (…, k) -> (…, j, k)."""
    return bilinear(_outer, a, b)


def vector_matrix(a: Number, w: Number) -> Number:
    """Row vectors (n, j) times one matrix (j, k) or one matrix a row (n, j, k)."""
    return bilinear(_vector_matrix, a, w)


def transpose(w: Number) -> Number:
    """Swap the last two axes."""
    return linear(lambda x: np.swapaxes(x, -1, -2), w)


def constant_part(a: Number) -> Any:
    """The residue array at the bottom of a nest of duals."""
    while isinstance(a, Dual):
        a = a.re
    return a


def solves_ode(value: np.ndarray, slope: Callable[[Number], Number], h: Number) -> Number:
    """The a with a = ``value`` at the constant part of h and da = slope(a) dh (tanh: slope 1 − a²).

    The value is data: for functions like tanh or exp it is algebraically independent of θ, so a random residue stands
    for it.
    """
    if not isinstance(h, Dual):
        return value
    inner = solves_ode(value, slope, h.re)
    return Dual(inner, times(slope(inner), h.im))


def residue(value: Fraction | int) -> float:
    """A rational number modulo p, centred."""
    fraction = Fraction(value)
    return float((fraction.numerator * invert(fraction.denominator) + PRIME // 2) % PRIME - PRIME // 2)


def residues_of(values: np.ndarray) -> np.ndarray:
    """An array of rationals modulo p."""
    return np.array([residue(v) for v in values.ravel()], dtype=np.float64).reshape(values.shape)


def invert(x: int) -> int:
    """1/x modulo p."""
    return pow(int(x) % PRIME, -1, PRIME)


class Echelon:
    """A growing space of row vectors modulo p in reduced echelon form; its rank is exact.

    New rows are reduced against the basis by one BLAS product, then among themselves block by block.
    """

    def __init__(self, dimension: int) -> None:
        self.basis = np.zeros((0, dimension))
        self.pivots = np.zeros(0, dtype=np.intp)

    @property
    def rank(self) -> int:
        """The dimension of the space so far."""
        return len(self.pivots)

    def add(self, rows: np.ndarray) -> list[int]:
        """Add rows; the indices of those that enlarged the space."""
        independent: list[int] = []
        for start in range(0, len(rows), _BLOCK):
            if self.rank == self.basis.shape[1]:
                break
            independent += [start + r for r in self._add_block(rows[start : start + _BLOCK])]
        return independent

    def _add_block(self, rows: np.ndarray) -> list[int]:
        if self.rank:
            rows = _minus_product(rows, rows[:, self.pivots], self.basis)
        rows, kept, pivots = _echelon(rows)
        if kept:
            if self.rank:
                self.basis = _minus_product(self.basis, self.basis[:, pivots], rows)
            self.basis = np.concatenate([self.basis, rows])
            self.pivots = np.concatenate([self.pivots, pivots])
        return kept

    def null_space(self) -> np.ndarray:
        """A basis of the vectors orthogonal to every row, one a row: 1 at a free column, 0 at the other free ones."""
        free = np.setdiff1d(np.arange(self.basis.shape[1]), self.pivots)
        null = np.zeros((len(free), self.basis.shape[1]))
        null[np.arange(len(free)), free] = 1
        null[:, self.pivots] = -self.basis[:, free].T
        return null


def _minus_product(rows: np.ndarray, factors: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Rows - factors @ basis; a factor of zeros costs nothing."""
    rows = np.array(rows, order="C")
    for start in range(0, factors.shape[1], _EXACT_TERMS - 1):
        piece = slice(start, start + _EXACT_TERMS - 1)
        if factors[:, piece].any():
            np.subtract(rows, factors[:, piece] @ basis[piece], out=rows)
            _reduce_in_place(rows)
    return rows


def _echelon(rows: np.ndarray) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Reduced echelon form by halves, so that nearly all work is BLAS: rows, which were independent, pivots."""
    if len(rows) <= _SMALL:
        return _eliminate(rows)
    half = len(rows) // 2
    top, kept_top, pivots_top = _echelon(rows[:half])
    bottom = rows[half:]
    if kept_top:
        bottom = _minus_product(bottom, bottom[:, pivots_top], top)
    bottom, kept_bottom, pivots_bottom = _echelon(bottom)
    if kept_bottom and kept_top:
        top = _minus_product(top, top[:, pivots_bottom], bottom)
    kept = kept_top + [half + r for r in kept_bottom]
    return np.concatenate([top, bottom]), kept, np.concatenate([pivots_top, pivots_bottom])


def _eliminate(rows: np.ndarray) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Gauss–Jordan of a few rows: the nonzero rows in reduced form, which they were, and their pivot columns."""
    rows = rows.copy()
    kept: list[int] = []
    pivots: list[int] = []
    for r in range(len(rows)):
        nonzero = np.flatnonzero(rows[r])
        if not len(nonzero):
            continue
        column = int(nonzero[0])
        rows[r] = reduce(rows[r] * (invert(int(rows[r, column]))))
        factors = rows[:, column].copy()
        factors[r] = 0
        touched = np.flatnonzero(factors)
        rows[touched] = reduce(rows[touched] - factors[touched, None] * rows[r])
        kept.append(r)
        pivots.append(column)
    return rows[kept], kept, np.array(pivots, dtype=np.intp)


def random_residues(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform residues, centred."""
    return rng.integers(-(PRIME // 2), PRIME // 2 + 1, shape).astype(np.float64)
