"""Sparse polynomials over the rationals: a dict from sorted tuples of variable numbers to coefficients.

Small on purpose: expanding a law needs only sums and products, any number of variables, and exact coefficients. The
verifier repeats the expansion with python-flint, so that two programs must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import TypeAlias

Monomial: TypeAlias = tuple[int, ...]
Polynomial: TypeAlias = dict[Monomial, int | Fraction]


def variable(number: int) -> Polynomial:
    """The polynomial of one variable."""
    return {(number,): 1}


def constant(value: int | Fraction) -> Polynomial:
    """A constant polynomial."""
    return {(): value} if value else {}


def add_into(total: Polynomial, term: Mapping[Monomial, int | Fraction], factor: int | Fraction = 1) -> None:
    """``total += factor · term`` in place, dropping what cancels."""
    for monomial, coefficient in term.items():
        value = total.get(monomial, 0) + factor * coefficient
        if value:
            total[monomial] = value
        else:
            total.pop(monomial, None)


def plus(*terms: Polynomial) -> Polynomial:
    """The sum."""
    total: Polynomial = {}
    for term in terms:
        add_into(total, term)
    return total


def times(a: Polynomial, b: Polynomial) -> Polynomial:
    """The product, expanded."""
    total: Polynomial = {}
    for left, x in a.items():
        for right, y in b.items():
            monomial = tuple(sorted(left + right))
            value = total.get(monomial, 0) + x * y
            if value:
                total[monomial] = value
            else:
                total.pop(monomial, None)
    return total


def derivative(f: Polynomial, number: int) -> Polynomial:
    """∂f/∂x of the variable ``number``."""
    total: Polynomial = {}
    for monomial, coefficient in f.items():
        power = monomial.count(number)
        if power:
            at = monomial.index(number)
            add_into(total, {monomial[:at] + monomial[at + 1 :]: coefficient * power})
    return total


def gradient(f: Polynomial, is_state: Callable[[int], bool]) -> dict[int, Polynomial]:
    """All nonzero derivatives by state variables, in one pass over the terms."""
    slopes: dict[int, Polynomial] = {}
    for monomial, coefficient in f.items():
        for number in set(monomial):
            if is_state(number):
                power = monomial.count(number)
                at = monomial.index(number)
                add_into(slopes.setdefault(number, {}), {monomial[:at] + monomial[at + 1 :]: coefficient * power})
    return slopes


def written(f: Polynomial, name: Callable[[int], str]) -> str:
    """Readable text, the largest monomials first: ``½·W1[1,1]² − B2[1,1]·W2[1,1]``."""
    pieces: list[str] = []
    for monomial, coefficient in sorted(f.items(), key=lambda item: (-len(item[0]), item[0])):
        factors = [name(n) + _power(monomial.count(n)) for n in sorted(set(monomial))]
        size = abs(coefficient)
        shown = "½" if size == Fraction(1, 2) else str(size)
        body = "·".join(([] if size == 1 and factors else [shown]) + factors)
        sign = ("− " if coefficient < 0 else "") if not pieces else (" − " if coefficient < 0 else " + ")
        pieces.append(sign + body)
    return "".join(pieces) or "0"


def _power(exponent: int) -> str:
    return "" if exponent == 1 else "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(exponent))


def total_of(terms: Iterable[Polynomial]) -> Polynomial:
    """The sum of many."""
    total: Polynomial = {}
    for term in terms:
        add_into(total, term)
    return total
