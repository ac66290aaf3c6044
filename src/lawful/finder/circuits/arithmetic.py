"""The numbers that networks are evaluated in: one interface, so that a network is written once for all of them.

- Residues: modulo 8388593 in float64 with nested dual numbers, the finder's fields and brackets.
- Jets: modulo 2³¹ − 1 in int64 with ε_1 … ε_k, the verifier's.
- Symbols: python-flint polynomials over the rationals, for proofs.
- Floats: float64, to compare with PyTorch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any, TypeAlias

import flint
import numpy as np

from lawful.finder import jets
from lawful.finder import residues as ff

Value: TypeAlias = Any
"""Numbers of an arithmetic, the units on the last axis; None is an exact zero."""


class Arithmetic(ABC):
    """Sums, products and index work on values; None, an exact zero, goes through everything."""

    @abstractmethod
    def constant(self, values: np.ndarray) -> Value:
        """An array of rationals."""

    @abstractmethod
    def add(self, a: Value, b: Value) -> Value:
        """A + b."""

    @abstractmethod
    def times(self, a: Value, b: Value) -> Value:
        """A ⊙ b."""

    @abstractmethod
    def take(self, a: Value, index: np.ndarray) -> Value:
        """The units ``index``."""

    @abstractmethod
    def collect(self, a: Value, index: np.ndarray, size: int) -> Value:
        """Sum the units of ``a`` into ``size`` units: number u goes to ``index[u]``."""

    def follow(self, value: Value, argument: Value, tangent: Callable[[Value, Value], Value]) -> Value:
        """The function with this value and d(value) = tangent(value, d(argument)); only dual numbers have a d."""
        return value


class Residues(Arithmetic):
    """Modulo the finder's prime."""

    def constant(self, values: np.ndarray) -> Value:
        """Residues."""
        return _residues(tuple(values.tolist()))

    def add(self, a: Value, b: Value) -> Value:
        """A + b."""
        return ff.add(a, b)

    def times(self, a: Value, b: Value) -> Value:
        """A ⊙ b."""
        return ff.times(a, b)

    def take(self, a: Value, index: np.ndarray) -> Value:
        """The units ``index``."""
        return ff.linear(lambda x: x[..., index], a)

    def collect(self, a: Value, index: np.ndarray, size: int) -> Value:
        """One exact matrix product."""
        belongs = _belonging(index, size)
        return ff.linear(lambda x: ff.product(x, belongs), a)

    def follow(self, value: Value, argument: Value, tangent: Callable[[Value, Value], Value]) -> Value:
        """One level of duals at a time."""
        if not isinstance(argument, ff.Dual):
            return value
        inner = self.follow(value, argument.re, tangent)
        return ff.Dual(inner, tangent(inner, argument.im))


class Jets(Arithmetic):
    """Modulo the verifier's prime."""

    def constant(self, values: np.ndarray) -> Value:
        """No ε."""
        p = jets.MODULUS
        exact = [Fraction(v) for v in values.ravel()]
        residues = [v.numerator * pow(v.denominator, -1, p) % p for v in exact]
        return [np.array(residues, dtype=np.int64).reshape(values.shape)]

    def add(self, a: Value, b: Value) -> Value:
        """A + b."""
        return b if a is None else a if b is None else jets.plus(a, b)

    def times(self, a: Value, b: Value) -> Value:
        """A ⊙ b."""
        return None if a is None or b is None else jets.multiply(a, b, jets.elementwise)

    def take(self, a: Value, index: np.ndarray) -> Value:
        """The units ``index``."""
        return None if a is None else [part[..., index] if part.ndim else part for part in a]

    def collect(self, a: Value, index: np.ndarray, size: int) -> Value:
        """Sums of fewer than 2³² residues stay below 2⁶³."""
        if a is None:
            return None
        belongs = _belonging(index, size).astype(np.int64)
        return [part @ belongs % jets.MODULUS if part.ndim else part for part in a]

    def follow(self, value: Value, argument: Value, tangent: Callable[[Value, Value], Value]) -> Value:
        """One ε at a time."""
        bit = 1
        while argument is not None and bit < len(argument):
            value = jets.along(value, tangent(value, jets.derivative(argument, bit)), bit)
            bit *= 2
        return value


class Floats(Arithmetic):
    """float64."""

    def constant(self, values: np.ndarray) -> Value:
        """Floats."""
        return values.astype(np.float64)

    def add(self, a: Value, b: Value) -> Value:
        """A + b."""
        return b if a is None else a if b is None else a + b

    def times(self, a: Value, b: Value) -> Value:
        """A ⊙ b."""
        return None if a is None or b is None else a * b

    def take(self, a: Value, index: np.ndarray) -> Value:
        """The units ``index``."""
        return None if a is None else a[..., index]

    def collect(self, a: Value, index: np.ndarray, size: int) -> Value:
        """A matrix product."""
        return None if a is None else a @ _belonging(index, size)


class Symbols(Floats):
    """Polynomials over the rationals, in object arrays of one axis."""

    def constant(self, values: np.ndarray) -> Value:
        """Rationals."""
        exact = [Fraction(v) for v in values.ravel()]
        return objects([flint.fmpq(v.numerator, v.denominator) for v in exact])

    def collect(self, a: Value, index: np.ndarray, size: int) -> Value:
        """Sums of polynomials."""
        if a is None:
            return None
        total = objects([flint.fmpq(0)] * size)
        for target, term in zip(index, a, strict=True):
            total[target] = total[target] + term
        return total


@lru_cache(maxsize=1024)
def _residues(values: tuple[Fraction | int, ...]) -> np.ndarray:
    return ff.residues_of(np.array(values, dtype=object))


def objects(values: list[Any]) -> np.ndarray:
    """An array of objects with one axis."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _belonging(index: np.ndarray, size: int) -> np.ndarray:
    belongs = np.zeros((len(index), size))
    belongs[np.arange(len(index)), index] = 1
    return belongs
