"""Line sums of many products in one pass over memory, compiled by numba where it is installed (extra ``fast``).

torch reads a weight anew for every product and every kind of line; here each tensor is read once, whatever is asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from typing import Final, TypeAlias

import numpy as np
import torch

from lawful.affine.slices import Matrix, Slices, is_plain, is_transformed
from lawful.conservation.combination import Combination, Leaf, Quotient
from lawful.conservation.loop import Plan, kernel
from lawful.errors import SettingError

NARROW: Final = 16
"""Columns below which a row is too short for a loop of its own."""

BAND: Final = 1 << 20
"""Elements for which a thread is worth its while."""

_NUMPY: Final = {torch.float32: np.float32, torch.float64: np.float64}

Group: TypeAlias = tuple[Sequence[tuple[Combination, Combination]], Sequence[Slices]]
"""Pairs x, y, and all the lines along which every x ⊙ y is to be summed, factors left out."""


@cache
def is_available() -> bool:
    """Whether numba is installed, and may compile.

    Raises:
        SettingError: it is installed, and does not load.
    """
    if find_spec("numba") is None:
        return False
    try:
        from numba.core import config
    except ImportError as error:
        raise SettingError(
            f"numba is installed and does not load ({error}); mend it, or uninstall it: torch then does its work"
        ) from error
    return not vars(config)["DISABLE_JIT"]


def in_one_pass(groups: Sequence[Group]) -> list[list[np.ndarray]] | None:
    """For each group, for each kind of line, the sums of its products, (products, lines), float64.

    None where torch has to do it. All tensors have the shape of one parameter; all lines are of one window of it.
    """
    matrix = _matrix([slices for _, lines in groups for slices in lines])
    if matrix is None:
        return None
    bodies = {x.key: x for pairs, _ in groups for pair in pairs for x in pair}
    leaves = {id(leaf): leaf for x in bodies.values() for _, leaf in x.terms}
    matrices = _Matrices(leaves.values(), groups[0][1][0].window)
    if not matrices.are_readable(matrix):
        return None
    matrices.numbers += [c for x in bodies.values() for c, _ in x.terms[1:]]
    leaf = {key: k for k, key in enumerate(leaves)}
    body = {key: k for k, key in enumerate(bodies)}
    products = []
    for pairs, lines in groups:
        along = _along(lines)
        products += [(body[x.key], body[y.key], *along) for x, y in pairs]
    summands = tuple([tuple([leaf[id(x)] for _, x in one.terms]) for one in bodies.values()])
    totals = _Totals(matrix, len(products))
    matrices.add_to(totals, 1.0, (matrices.plan, summands, tuple(products)))
    found, first = [], 0
    for pairs, lines in groups:
        own = slice(first, first := first + len(pairs))
        found.append([totals.by_line(slices, own) for slices in lines])
    return found


class SquaredNorms:
    """Σ_t ‖Δ_t[line]‖² over steps Δ_t of one parameter.

    Args:
        lines: of which kinds, in one window.
    """

    def __init__(self, lines: Sequence[Slices]) -> None:
        self._lines = lines
        self._matrix = _matrix(lines)
        self._product = ((0, 0, *_along(lines)),)
        self._totals: _Totals | None = None

    def add(self, step: Combination) -> bool:
        """Take in one step; False where torch has to do it."""
        if self._matrix is None:
            return False
        matrices = _Matrices([leaf for _, leaf in step.terms], self._lines[0].window)
        if not matrices.are_readable(self._matrix):
            return False
        matrices.numbers += [c for c, _ in step.terms[1:]]
        self._totals = self._totals or _Totals(self._matrix, 1)
        body = tuple(range(len(step.terms)))
        matrices.add_to(self._totals, step.factor * step.factor, (matrices.plan, (body,), self._product))
        return True

    def take(self) -> list[torch.Tensor] | None:
        """The sums of each kind of line, (lines,), and begin anew; None if there was no step."""
        totals, self._totals = self._totals, None
        return totals and [torch.from_numpy(totals.by_line(slices, slice(1))[0]) for slices in self._lines]


def _matrix(lines: Sequence[Slices]) -> Matrix | None:
    """The matrix that all lines are rows or columns of, if there is one and its rows are no shorter than is wise."""
    matrix = lines[0].matrix if lines else None
    fits = matrix is not None and (matrix.height == 1 or matrix.width >= NARROW)
    return matrix if fits and all([slices.matrix == matrix for slices in lines]) else None


class _Totals:
    """Where sums come together: of every product those of its rows, and those of its columns by thread."""

    def __init__(self, matrix: Matrix, products: int) -> None:
        height, self.width = matrix.height, matrix.width
        bands = min(torch.get_num_threads(), max(1, height * self.width // BAND), height)
        self.ends = [height * k // bands for k in range(bands + 1)]
        self.rows, self.columns = np.zeros((products, height)), np.zeros((bands, products, self.width))

    def by_line(self, slices: Slices, products: slice) -> np.ndarray:
        """The sums by line, (products, lines): a line is a row, or some columns."""
        if slices.by_row:
            return self.rows[products]
        columns = (self.columns[0] if len(self.columns) == 1 else self.columns.sum(0))[products]
        return columns if self.width == slices.count else columns.reshape(len(columns), slices.count, -1).sum(2)


class _Matrices:
    """What a pass reads: matrices, and the numbers that combine them.

    Args:
        leaves: what stands in the combinations.
        window: the rows that are read, if not all.
    """

    def __init__(self, leaves: Iterable[Leaf], window: tuple[int, int] | None) -> None:
        self._window, self._skipped = window, 0
        self.numbers: list[float] = []
        self._tensors: list[torch.Tensor] = []
        self._places: dict[int, int] = {}
        self.plan = tuple([self._leaf(leaf) for leaf in leaves])

    def _leaf(self, leaf: Leaf) -> tuple[int, ...]:
        if isinstance(leaf, Quotient):
            self.numbers.append(leaf.eps)
            return self._place(leaf.m), self._place(leaf.v)
        return (self._place(leaf),)

    def _place(self, x: torch.Tensor) -> int:
        place = self._places.setdefault(id(x), len(self._tensors))
        if place == len(self._tensors):
            self._tensors.append(x)
        return place

    def are_readable(self, matrix: Matrix) -> bool:
        """Whether all lie in this memory, row by row, of this size, as float32 or float64 throughout."""
        one = self._tensors[0]
        length = one.shape[0] if one.dim() else 1
        first, last = self._window or (0, length)
        self._skipped = one.nbytes // max(1, length) * first
        return (
            one.dtype in _NUMPY
            and 0 < last <= length
            and one.numel() * (last - first) == matrix.height * matrix.width * length
            and not is_transformed()
            and not (torch.is_grad_enabled() and any([x.requires_grad for x in self._tensors]))
            and all([_is_like(x, one) for x in self._tensors])
        )

    def add_to(self, totals: _Totals, factor: float, plan: Plan) -> None:
        """Add factor · the sums, every band of rows in a thread of its own."""
        width, ends, one = totals.width, totals.ends, self._tensors[0]
        addresses = np.array([x.data_ptr() + self._skipped for x in self._tensors], np.int64)
        numbers = np.array(self.numbers, np.float64)
        add = kernel(plan, _NUMPY[one.dtype])
        if len(ends) == 2:
            add(addresses, numbers, factor, totals.rows, totals.columns[0], width, 0, ends[1])
            return

        # an interrupt ends this call and not the bands: each holds the tensors that it reads
        def add_band(columns: np.ndarray, first: int, last: int, held: object = self._tensors) -> None:
            add(addresses, numbers, factor, totals.rows, columns, width, first, last)

        tuple(_threads(len(totals.columns), os.getpid()).map(add_band, totals.columns, ends, ends[1:]))


def _is_like(x: torch.Tensor, one: torch.Tensor) -> bool:
    return x.dtype == one.dtype and x.shape == one.shape and is_plain(x) and x.is_contiguous()


@cache
def _threads(count: int, process: int) -> ThreadPoolExecutor:
    """Threads to use again, of this process: one that was forked off has none of them."""
    return ThreadPoolExecutor(count)


def _along(lines: Sequence[Slices]) -> tuple[bool, bool]:
    """Whether some are rows, and whether some are columns."""
    by_row = [slices.by_row for slices in lines]
    return any(by_row), not all(by_row)
