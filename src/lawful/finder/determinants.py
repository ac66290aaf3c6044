"""Laws that are determinants: what a linear layer can only move within a fixed space, or by matrices of trace zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Final, TypeAlias

import flint
import numpy as np

from lawful.finder import polynomials as poly
from lawful.finder.candidates import Candidate
from lawful.finder.linear_laws import error_map
from lawful.finder.polynomials import Polynomial
from lawful.finder.symbols import Symbols

MAX_SIZE: Final = 5
"""Determinants up to this size are written out: 120 products."""

MAX_TERMS: Final = 5000

Column: TypeAlias = list[Polynomial]


def within_reach(symbols: Symbols) -> Iterator[Candidate]:
    """W_{i+1} moves only along the activations that layer i can show, and these keep to a constant space A_i.

    With δ_i = eC_iᵀ: A_i = W_iA_{i-1} + image of C_i, A_0 all inputs; W_i itself moves within it. With biases a_i lies
    in κ_i + A_i, κ_i = W_iκ_{i-1} + b_i. Law: every minor of a basis of A_i beside W_{i+1}[o,:]ᵀ - b_{i+1}[o]κ_i.
    """
    arch = symbols.system.arch
    space = [[poly.constant(int(a == b)) for a in range(arch.widths[0])] for b in range(arch.widths[0])]
    centre: Column = [{} for _ in range(arch.widths[0])]
    for i in range(arch.depth - 1):
        C = error_map(symbols, i)
        if C is None or not symbols.system.acts_linearly(i) or arch.biases[i] != arch.biases[i + 1]:
            return
        weights = [[poly.variable(int(at)) for at in row] for row in arch.weight_at[i]]
        biases = arch.bias_at[i]
        own = _independent_columns(C)
        space = [*(_image(weights, column) for column in space), *own]
        centre = _image(weights, centre)
        if biases is not None:
            centre = [poly.plus(c, poly.variable(int(at))) for c, at in zip(centre, biases, strict=True)]
        if len(space) >= arch.widths[i + 1]:
            space = [[poly.constant(int(a == b)) for a in range(len(centre))] for b in range(len(centre))]
        elif len(space) < MAX_SIZE:
            yield from _minors(symbols, i, space, centre)


def _minors(symbols: Symbols, i: int, space: list[Column], centre: Column) -> Iterator[Candidate]:
    """The first rows and one more: enough of the minors, as generically the first rows of the space are independent."""
    arch, size = symbols.system.arch, len(space)
    bias = arch.bias_at[i + 1]
    for o, row in enumerate(arch.weight_at[i + 1]):
        moving = [poly.variable(int(at)) for at in row]
        if bias is not None:
            shift = poly.variable(int(bias[o]))
            moving = [
                poly.plus(w, poly.times({(): -1}, poly.times(shift, c))) for w, c in zip(moving, centre, strict=True)
            ]
        for extra in range(size, arch.widths[i + 1]):
            rows = [*range(size), extra]
            h = determinant([[column[r] for r in rows] for column in [*space, moving]])
            if h and len(h) <= MAX_TERMS:
                name = f"W{i + 2} moves only within reach of layer {i + 1}, row {o + 1}, minor {extra - size + 1}"
                text = f"det[A{i + 1}, W{i + 2}[{o + 1},:]ᵀ{'' if bias is None else f' − b{i + 2}[{o + 1}]κ{i + 1}'}]"
                yield Candidate(
                    "reach", name, f"{text} of rows {[r + 1 for r in rows]}", h, numeric=True, to_output=True
                )


def square_pair(symbols: Symbols) -> Iterator[Candidate]:
    """det[W_i, b_i, W_{i+1}ᵀ] of linear layers where it is square, for backpropagation (Kolen-Pollack: B_{i+1}ᵀ).

    The matrix A moves as A times [[0, -Z], [-Zᵀ, 0]], which has trace zero. Under decay it shrinks at the sum of the
    rates of its columns, also where unequal rates leave the matrix laws no common factor.
    """
    arch, source = symbols.system.arch, symbols.system.family.source
    if source not in ("weight", "moving"):
        return
    for i in range(arch.depth - 1):
        n, bias = arch.widths[i + 1], arch.bias_at[i]
        if not symbols.system.acts_linearly(i) or n != arch.widths[i] + arch.biases[i] + arch.widths[i + 2]:
            continue
        above = arch.weight_at[i + 1] if source == "weight" else symbols.moving_at[i + 1]
        columns = [*arch.weight_at[i].T, *([] if bias is None else [bias]), *above]
        if n <= MAX_SIZE:
            h = determinant([[poly.variable(int(at)) for at in column] for column in columns])
            text = f"det[W{i + 1}, {'' if bias is None else f'b{i + 1}, '}{'W' if source == 'weight' else 'B'}{i + 2}ᵀ]"
            yield Candidate("determinant", f"determinant of layers {i + 1} and {i + 2}", text, h, to_output=True)


def determinant(columns: Sequence[Column]) -> Polynomial:
    """The determinant, expanded."""
    total: Polynomial = {}
    for order in permutations(range(len(columns))):
        sign = 1
        for a in range(len(order)):
            for b in range(a):
                sign = -sign if order[b] > order[a] else sign
        product = poly.constant(sign)
        for column, r in zip(columns, order, strict=True):
            product = poly.times(product, column[r]) if product else product
        poly.add_into(total, product)
    return total


def _image(weights: list[Column], column: Column) -> Column:
    return [poly.total_of(poly.times(w, a) for w, a in zip(row, column, strict=True)) for row in weights]


def _independent_columns(C: flint.fmpz_mat) -> list[Column]:
    kept: list[list[int]] = []
    for column in np.array(C.tolist(), dtype=object).T:
        if flint.fmpz_mat([*kept, [int(x) for x in column]]).rank() > len(kept):
            kept.append([int(x) for x in column])
    return [[poly.constant(x) for x in column] for column in kept]
