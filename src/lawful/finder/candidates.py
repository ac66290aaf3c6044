"""What a law looks like before it is proved, and the exact linear algebra that writes one down."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import flint
import numpy as np

from lawful.finder.polynomials import Polynomial, add_into


@dataclass(frozen=True)
class Candidate:
    """A polynomial that should be constant along the flow.

    Attributes:
        kind: the family of the law: "neuron", "matrix", "shift", "range", "frozen", "difference".
        name: what a reader calls it.
        formula: in the letters of the theory.
        polynomial: in the variables of :class:`~lawful.finder.symbols.Symbols`.
        numeric: the coefficients use the given numbers of B, and so must the proof.
        to_output: the proof needs the layers up to the output.
        local: holds in the orthant only; the proof knows which units are on and off all over it.
        orbit: laws with the same orbit are renamings of each other (permuted hidden units): one proof serves all.
    """

    kind: str
    name: str
    formula: str
    polynomial: Polynomial
    numeric: bool = False
    to_output: bool = False
    orbit: tuple[Hashable, ...] | None = None
    local: bool = False


def put(h: Polynomial, coefficient: int | Fraction, *variables: Any) -> None:
    """Add ``coefficient`` times the product of the variables to h."""
    if coefficient:
        add_into(h, {tuple(sorted(int(v) for v in variables)): coefficient})


def integer(a: np.ndarray) -> flint.fmpz_mat:
    """A matrix of whole numbers for python-flint."""
    rows, columns = a.shape
    return flint.fmpz_mat(rows, columns, [int(x) for x in a.ravel()])


def left_null_space(C: flint.fmpz_mat) -> list[list[int]]:
    """A basis of the rows N with N C = 0, in whole numbers without common factor."""
    null, rank = C.transpose().nullspace()
    rows = []
    for column in range(rank):
        row = [int(null[j, column]) for j in range(C.nrows())]
        common = int(np.gcd.reduce(np.array(row, dtype=object)))
        rows.append([x // common for x in row])
    return rows
