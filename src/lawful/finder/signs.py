"""Which signs an error can send back: the cells of a hyperplane arrangement, enumerated exactly.

Under sign feedback alignment a linear net's hidden errors are δ_{L-1} = sign(eB_L), δ_i = sign(δ_{i+1}B_{i+1}): they
depend on the cell of the arrangement {e : e·B_L[:,j] = 0} that e lies in, and on nothing else. Errors on a wall have
measure zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, TypeAlias

import flint
import numpy as np

MAX_CELLS: Final = 2048

Vector: TypeAlias = list[int]


def num_cells(dimension: int, hyperplanes: int) -> int:
    """The cells of so many hyperplanes through the origin in general position; there are never more.

    >>> num_cells(2, 3), num_cells(3, 3), num_cells(1, 7)
    (6, 8, 2)
    """
    return 2 * sum(math.comb(hyperplanes - 1, k) for k in range(dimension)) if hyperplanes else 1


def cells(columns: Sequence[Vector]) -> list[tuple[tuple[int, ...], Vector]]:
    """The sign patterns of (e·c)_c over all e off the walls, each with a whole-number e that shows it.

    Hyperplanes are added one by one: a new one cuts exactly those cells whose pattern the old ones also show on it.
    A zero column has sign 0.

    >>> sorted(pattern for pattern, _ in cells([[1, 0], [1, 1]]))
    [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    """
    found: list[tuple[tuple[int, ...], Vector]] = [((), [0] * len(columns[0]))] if columns else []
    for k, new in enumerate(columns):
        old = columns[:k]
        cut: dict[tuple[int, ...], Vector] = {}
        if any(new) and not any(any(c) and _parallel(new, c) for c in old):
            basis = _orthogonal(new)
            restricted = cells([[_dot(row, c) for row in basis] for c in old]) if old else [((), [0] * len(basis))]
            cut = {p: [_dot(u, [row[a] for row in basis]) for a in range(len(new))] for p, u in restricted}
        longer = []
        for pattern, e in found:
            if pattern in cut:
                longer += [((*pattern, side), _beside(cut[pattern], new, old, side)) for side in (1, -1)]
            else:
                longer.append(((*pattern, _sign(_dot(e, new))), e))
        found = longer
    return found


def sign_cells(B: np.ndarray, errors: np.ndarray) -> list[tuple[tuple[int, ...], Vector]] | None:
    """The patterns of sign(eB), each with an e that shows it; ``errors`` (m, ·) has a basis of the error signals.

    None where there may be more than 2048.
    """
    columns = [[int(x) for x in column] for column in (errors.T @ B).T]
    if num_cells(errors.shape[1], len(columns)) > MAX_CELLS:
        return None
    return [(pattern, [int(x) for x in errors @ np.array(u, dtype=object)]) for pattern, u in cells(columns)]


def joint_patterns(patterns: Sequence[Sequence[int]], B: Sequence[np.ndarray]) -> np.ndarray:
    """A basis of the span of (δ_1, …, δ_{L-1}) through a linear net, one a row, from all δ_{L-1} and B_2 … B_{L-1}."""
    rows = set()
    for pattern in patterns:
        sent = [np.array(pattern, dtype=object)]
        for block in reversed(B):
            sent.insert(0, np.array([_sign(x) for x in sent[0] @ block], dtype=object))
        rows.add(tuple(int(x) for part in sent for x in part))
    matrix = flint.fmpz_mat([list(row) for row in sorted(rows)])
    reduced, _, rank = matrix.rref()
    return np.array([[int(reduced[r, c]) for c in range(reduced.ncols())] for r in range(rank)], dtype=object).reshape(
        rank, reduced.ncols()
    )


def _sign(x: int) -> int:
    return (x > 0) - (x < 0)


def _dot(a: Vector, b: Vector) -> int:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _parallel(a: Vector, b: Vector) -> bool:
    return _dot(a, b) ** 2 == _dot(a, a) * _dot(b, b)


def _orthogonal(c: Vector) -> list[Vector]:
    """A basis of the vectors orthogonal to c ≠ 0, in whole numbers."""
    at = next(i for i, x in enumerate(c) if x)
    rows = []
    for other in (i for i in range(len(c)) if i != at):
        row = [0] * len(c)
        row[at], row[other] = -c[other], c[at]
        rows.append(row)
    return rows


def _beside(e: Vector, new: Vector, old: Sequence[Vector], side: int) -> Vector:
    """A point next to e, which lies on the new hyperplane: on one side of it, where e is with respect to the others."""
    far = 1 + max((abs(_dot(new, c)) for c in old), default=0)
    moved = [far * x + side * y for x, y in zip(e, new, strict=True)]
    common = math.gcd(*moved)
    return [x // common for x in moved]
