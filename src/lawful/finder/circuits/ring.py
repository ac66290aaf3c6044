"""Symbols for everything in a circuit, and the relations between them: row sums of P are 1, r²(v + ε) = 1."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import flint
import numpy as np

from lawful.finder.circuits.arithmetic import Symbols, Value, objects
from lawful.finder.circuits.circuit import Circuit, forward
from lawful.finder.circuits.fields import System
from lawful.finder.circuits.nodes import Here, InverseRoot, Softmax, State
from lawful.finder.polynomials import Polynomial, gradient


class Ring:
    """Polynomials in θ, B, the data, and what stands for whole parts of the network.

    Args:
        system: the circuit and its rule.
        numeric: B as given; otherwise B is symbols.
        opaque: nodes that are symbols of their own instead of functions of what is below them.
        extra: further symbols, as (key, count).
    """

    def __init__(
        self, system: System, *, numeric: bool, opaque: Sequence[int], extra: Sequence[tuple[Hashable, int]] = ()
    ) -> None:
        self.system, self.circuit, self.ar = system, system.circuit, Symbols()
        self.relations: list[tuple[int, Any]] = []
        size = self.circuit.size
        blocks: list[tuple[Hashable, int]] = [("theta", size), ("B", size), *extra]
        hidden = set(opaque)
        for number, node in enumerate(self.circuit.nodes):
            if number in hidden or node.has_data:
                blocks.append((number, node.size))
            if isinstance(node, InverseRoot) and node.epsilon:
                blocks.append((("ε", number), 1))
        total = sum(count for _, count in blocks)
        self.context = flint.fmpq_mpoly_ctx.get([f"v{i}" for i in range(total)], "lex")
        generators, start = self.context.gens(), 0
        self._start: dict[Hashable, int] = {}
        self._symbols: dict[Hashable, np.ndarray] = {}
        for key, count in blocks:
            self._start[key] = start
            self._symbols[key] = objects(list(generators[start : start + count]))
            start += count
        self.theta = self._symbols["theta"]
        self.B = self._feedback(numeric)
        self.opaque = {number: self._symbols[number] for number in opaque}

    def _feedback(self, numeric: bool) -> np.ndarray:
        if self.system.family.source == "weight":
            return self.theta
        if numeric and not self.system.moving:
            return self.ar.constant(self.system.exact)
        return self._symbols["B"]

    def symbols(self, key: Hashable) -> np.ndarray:
        """The symbols of an extra block."""
        return self._symbols[key]

    def visited(self, s: State) -> list[Here]:
        """Every node's value."""
        return forward(self.circuit, s, self._given, self.opaque)

    def _given(self, number: int, inputs: Sequence[Value]) -> Value:
        node, symbols = self.circuit.nodes[number], self._symbols[number]
        if isinstance(node, Softmax):
            symbols = symbols.copy()
            for r in np.unique(node.row):
                *free, last = np.flatnonzero(node.row == r)
                symbols[last] = 1 - sum((symbols[u] for u in free), self.context.constant(0))
        elif isinstance(node, InverseRoot):
            for u in range(node.size):
                shift = self._symbols["ε", number][0] if node.epsilon else 0
                self.relations.append((self._start[number] + u, inputs[0][u] + shift))
        return symbols

    def value(self, h: Polynomial) -> Any:
        """A polynomial in the symbols of the system."""
        total = self.context.constant(0)
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
        slopes = objects([self.context.constant(0)] * size)
        for number, slope in gradient(h, lambda n: n < size or self.system.moving).items():
            slopes[number % size] = slopes[number % size] + self.value(slope)
        return slopes

    def vanishes(self, f: Any) -> bool:
        """True when f is zero as a function: modulo r²(v + ε) = 1, odd and even powers of r apart, denominators away."""
        f = f if isinstance(f, flint.fmpq_mpoly) else self.context.constant(f)
        remaining = [f]
        for at, v in reversed(self.relations):
            remaining = [part for g in remaining if g != 0 for part in self._without(g, at, v)]
        return all(g == 0 for g in remaining)

    def _without(self, f: Any, at: int, v: Any) -> list[Any]:
        powers: dict[int, dict[tuple[int, ...], Any]] = {}
        for exponents, coefficient in f.to_dict().items():
            rest = (*exponents[:at], 0, *exponents[at + 1 :])
            powers.setdefault(int(exponents[at]), {})[rest] = coefficient
        if set(powers) <= {0}:
            return [f]
        highest = max(powers) // 2
        parts = [self.context.constant(0), self.context.constant(0)]
        for power, terms in powers.items():
            parts[power % 2] = parts[power % 2] + self.context.from_dict(terms) * v ** (highest - power // 2)
        return parts


def mentioned(circuit: Circuit, h: Polynomial) -> set[int]:
    """The variables whose weights or B's a polynomial contains."""
    return {number % circuit.size for monomial in h for number in monomial}
