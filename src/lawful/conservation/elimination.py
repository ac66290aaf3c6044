"""Exact elimination: which combinations of known quantities follow from linear equations with unknown ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

Row = dict[Any, Fraction]
"""One equation: column name (any hashable) -> coefficient."""


def _subtract(row: Row, factor: Fraction, pivot: Row) -> Row:
    merged = dict(row)
    for column, value in pivot.items():
        merged[column] = merged.get(column, Fraction(0)) - factor * value
        if not merged[column]:
            del merged[column]
    return merged


def _split(rows: list[Row], column: Any) -> tuple[Row | None, list[Row]]:
    """The shortest row that has the column, scaled to 1 there, and the other rows freed of the column."""
    having = [row for row in rows if column in row]
    if not having:
        return None, rows
    chosen = min(having, key=len)
    pivot = {c: v / chosen[column] for c, v in chosen.items()}
    return pivot, _clear([row for row in rows if row is not chosen], column, pivot)


def _clear(rows: list[Row], column: Any, pivot: Row) -> list[Row]:
    cleared = [_subtract(row, row[column], pivot) if column in row else row for row in rows]
    return [row for row in cleared if row]


def relations(rows: Iterable[Row], known: Callable[[Any], bool]) -> list[Row]:
    """A basis, in reduced row echelon form, of the combinations of the equations that hold known columns only.

    >>> one = Fraction(1)
    >>> relations([{"P": one, "x": -one}, {"x": one, "C": -2 * one}], known=str.isupper)
    [{'C': Fraction(-2, 1), 'P': Fraction(1, 1)}]
    """
    remaining = [{c: v for c, v in row.items() if v} for row in rows]
    columns = dict.fromkeys(column for row in remaining for column in row)
    for column in (c for c in columns if not known(c)):
        remaining = _split(remaining, column)[1]
    basis: list[Row] = []
    for column in (c for c in columns if known(c)):
        pivot, remaining = _split(remaining, column)
        if pivot is not None:
            basis = [*_clear(basis, column, pivot), pivot]
    return basis
