"""Symbols for everything in a circuit, and the relations between them: row sums of P are 1, r²(v + ε) = 1."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import flint
import numpy as np

from lawful.finder.circuits.arithmetic import Symbols, Value, objects
from lawful.finder.circuits.fields import System
from lawful.finder.circuits.nodes import InverseRoot, Softmax
from lawful.finder.polynomials import Polynomial, gradient


class Ring:
    """Polynomials in θ, B, the data, and symbols that may stand for the units of any node.

    Args:
        system: the circuit and its rule.
        numeric: B as given; otherwise B is symbols.
    """

    def __init__(self, system: System, *, numeric: bool) -> None:
        self.system, self.circuit, self.ar = system, system.circuit, Symbols()
        self.relations: list[tuple[int, Any]] = []
        size = self.circuit.size
        blocks: list[tuple[Hashable, int]] = [("θ", size), ("B", size)]
        for number, node in enumerate(self.circuit.nodes):
            blocks += [(number, node.size)] + [(("ε", number), 1)] * isinstance(node, InverseRoot)
        total = sum(count for _, count in blocks)
        self.context = flint.fmpq_mpoly_ctx.get([f"v{i}" for i in range(total)], "lex")
        self.zero = self.context.constant(0)
        generators, start = self.context.gens(), 0
        self._start: dict[Hashable, int] = {}
        self._symbols: dict[Hashable, np.ndarray] = {}
        for key, count in blocks:
            self._start[key] = start
            self._symbols[key] = objects(list(generators[start : start + count]))
            start += count
        self.theta = self._symbols["θ"]
        self.B = self._feedback(numeric)

    def _feedback(self, numeric: bool) -> np.ndarray:
        if self.system.family.source == "weight":
            return self.theta
        if numeric and not self.system.moving:
            return self.ar.constant(self.system.exact)
        return self._symbols["B"]

    def fresh(self, number: int) -> np.ndarray:
        """New symbols for the units of a node without data."""
        return self._symbols[number]

    def data(self, number: int, inputs: Sequence[Value]) -> Value:
        """The data of a node: symbols, the last weight of a row one minus the others, roots with their relation."""
        node, symbols = self.circuit.nodes[number], self._symbols[number]
        if isinstance(node, Softmax):
            symbols = symbols.copy()
            for r in np.unique(node.row):
                *free, last = np.flatnonzero(node.row == r)
                symbols[last] = 1 - sum((symbols[u] for u in free), self.zero)
        elif isinstance(node, InverseRoot):
            shift = self._symbols["ε", number][0] if node.epsilon else self.zero
            self.relations += [(self._start[number] + u, inputs[0][u] + shift) for u in range(node.size)]
        return symbols

    def value(self, h: Polynomial) -> Any:
        """A polynomial in the symbols of the system."""
        total = self.zero
        for monomial, coefficient in h.items():
            term = self.context.constant(flint.fmpq(*coefficient.as_integer_ratio()))
            for number in monomial:
                size = self.circuit.size
                term = term * (self.theta[number] if number < size else self.B[number - size])
            total = total + term
        return total

    def slopes(self, h: Polynomial) -> np.ndarray:
        """∂h/∂θ_v, plus ∂h/∂B_v where B moves like θ: the direction along which F is asked for."""
        size = self.circuit.size
        slopes = objects([self.zero] * size)
        for number, slope in gradient(h, lambda n: n < size or self.system.moving).items():
            slopes[number % size] = slopes[number % size] + self.value(slope)
        return slopes

    def vanishes(self, f: Any) -> bool:
        """True when f is zero modulo r²(v + ε) = 1: odd and even powers of r apart, denominators multiplied out."""
        remaining = [self.polynomial(f)]
        for at, v in reversed(self.relations):
            remaining = [part for g in remaining if g != 0 for part in self._without(g, at, v)]
        return all(g == 0 for g in remaining)

    def ratio(self, a: Any, b: Any) -> Any:
        """The constant c with b = c · a, or None."""
        if self.vanishes(b):
            return self.zero
        a, b = (self.polynomial(f) for f in (a, b))
        terms = a.to_dict()
        if not terms:
            return None
        leading = next(iter(terms))
        c = b.to_dict().get(leading, 0) / terms[leading]
        return self.context.constant(c) if self.vanishes(b - c * a) else None

    def polynomial(self, f: Any) -> Any:
        """A polynomial, also of a number."""
        return f if isinstance(f, flint.fmpq_mpoly) else self.context.constant(f)

    def _without(self, f: Any, at: int, v: Any) -> list[Any]:
        powers: dict[int, dict[tuple[int, ...], Any]] = {}
        for exponents, coefficient in f.to_dict().items():
            rest = (*exponents[:at], 0, *exponents[at + 1 :])
            powers.setdefault(int(exponents[at]), {})[rest] = coefficient
        if set(powers) <= {0}:
            return [f]
        highest = max(powers) // 2
        parts = [self.zero, self.zero]
        for power, terms in powers.items():
            parts[power % 2] = parts[power % 2] + self.context.from_dict(terms) * v ** (highest - power // 2)
        return parts
