"""Symbolic proof of a law: ∇h · F expanded, with every weight, input, error and activation mask a symbol, is zero.

The expansion starts at the lowest layer the law mentions and ends at the highest: what comes in from below (a_lo) and
from above (δ_hi) are symbols of their own. As h's gradient meets the rest of the network through these alone, an
identity in them is an identity of the whole network, whatever its other layers are (substitute their expressions).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from lawful.finder import polynomials as poly
from lawful.finder.polynomials import Polynomial
from lawful.finder.symbols import Symbols


@dataclass(frozen=True)
class Context:
    """What is known of the data in one case of a proof; empty: everything is a symbol.

    Attributes:
        masks: per hidden layer the slopes of an activation pattern; None for a unit whose slope is a symbol.
        x: the input.
    """

    masks: tuple[tuple[Fraction | None, ...], ...] | None = None
    x: tuple[int | Fraction, ...] | None = None

    def lowest(self, layers: set[int]) -> int:
        """The layer (from 0) at which an expansion may begin for a law that mentions ``layers``.

        At the lowest of them; one below when some masks are known, as what enters then depends on them; at the input
        when all data are known.
        """
        known = self.x is not None or (self.masks is not None and all(None not in layer for layer in self.masks))
        first = min(layers, default=0)
        return 0 if known else first if self.masks is None else max(0, first - 1)


@dataclass
class Expansion:
    """Forward and backward pass in polynomials, between the layers ``low`` and ``high`` (from 0)."""

    symbols: Symbols
    low: int
    high: int
    numeric: bool = False
    context: Context = field(default_factory=Context)
    drift: Callable[[Symbols, int], Polynomial] | None = None
    _numbers: dict[tuple[str, int, int], int] = field(default_factory=dict)
    _memo: dict[tuple[str, int, int], Polynomial] = field(default_factory=dict)
    _given: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.numeric:
            blocks = zip(self.symbols.feedback_at, self.symbols.system.exact, strict=True)
            self._given = {int(at): b[i] for ats, b in blocks for i, at in np.ndenumerate(ats)}

    def rate(self, h: Polynomial) -> Polynomial:
        """∇h · F, expanded."""
        dimension = self.symbols.system.dimension
        slopes = poly.gradient(h, lambda number: number < dimension)
        rows: dict[tuple[int, int], list[Polynomial]] = {}
        total: Polynomial = {}
        for number, raw in slopes.items():
            place = self.symbols.forced(number)
            slope = self._substituted(raw) if self.numeric else raw
            if self.drift is not None:
                poly.add_into(total, poly.times(slope, self.drift(self.symbols, number)))
            if place is None:
                continue
            part = slope if place.column is None else poly.times(slope, self.activation(place.layer, place.column))
            rows.setdefault((place.layer, place.row), []).append(part)
        for (layer, row), parts in rows.items():
            meeting = poly.total_of(parts)
            if meeting:
                poly.add_into(total, poly.times(self.delta(layer, row), meeting), -1)
        return total

    def _symbol(self, kind: str, layer: int, unit: int) -> Polynomial:
        key = (kind, layer, unit)
        number = self._numbers.setdefault(key, self.symbols.count + len(self._numbers))
        return poly.variable(number)

    def _once(self, kind: str, layer: int, unit: int) -> Polynomial:
        key = (kind, layer, unit)
        if key not in self._memo:
            self._memo[key] = getattr(self, f"_{kind}")(layer, unit)
        return self._memo[key]

    def activation(self, layer: int, unit: int) -> Polynomial:
        """The ``unit``-th input of ``layer``: a symbol at the lowest layer."""
        return self._once("forward", layer, unit)

    def delta(self, layer: int, unit: int) -> Polynomial:
        """δ of a unit of ``layer``."""
        return self._once("backward", layer, unit)

    def _forward(self, layer: int, unit: int) -> Polynomial:
        if layer == 0 and self.context.x is not None:
            return poly.constant(self.context.x[unit])
        sigma = self.symbols.system.arch.sigma
        if layer == self.low or sigma.degree is None:
            return self._symbol("a", layer, unit)
        mask = self._mask(layer - 1, unit)
        h = self._once("pre", layer - 1, unit) if mask else {}
        a = poly.times(h, h) if sigma.degree == 2 else h
        return poly.times(a, mask)

    def _pre(self, layer: int, unit: int) -> Polynomial:
        arch = self.symbols.system.arch
        total: Polynomial = {}
        for k in range(arch.widths[layer]):
            weight = poly.variable(int(arch.weight_at[layer][unit, k]))
            poly.add_into(total, poly.times(weight, self.activation(layer, k)))
        bias = arch.bias_at[layer]
        if bias is not None:
            poly.add_into(total, poly.variable(int(bias[unit])))
        return total

    def _mask(self, layer: int, unit: int) -> Polynomial:
        system = self.symbols.system
        if system.arch.sigma.slopes is None or system.acts_linearly(layer):
            return poly.constant(1)
        known = None if self.context.masks is None else self.context.masks[layer][unit]
        return self._symbol("s", layer, unit) if known is None else poly.constant(known)

    def _backward(self, layer: int, unit: int) -> Polynomial:
        system = self.symbols.system
        if layer == system.arch.depth - 1:
            return self._error(unit)
        if layer == self.high and not system.family.direct and system.family.route != "signs":
            return self._symbol("delta", layer, unit)
        if system.family.route == "signs":
            return poly.times(self._sign(layer, unit), self._slope(layer, unit))
        if not self._mask(layer, unit):
            return {}
        carried: Polynomial = {}
        direct = system.family.direct
        for o in range(system.arch.widths[-1] if direct else system.arch.widths[layer + 2]):
            signal = self._signal(o) if direct else self.delta(layer + 1, o)
            poly.add_into(carried, poly.times(signal, self._feedback(layer + 1, o, unit)))
        return poly.times(carried, self._slope(layer, unit))

    def _sign(self, layer: int, unit: int) -> Polynomial:
        """A symbol of its own; for given B through a linear net a combination of as many as the signs span."""
        maps = self.symbols.system.sent_signs if self.numeric else None
        if maps is None:
            return self._symbol("sign", layer, unit)
        column = maps[layer][:, unit]
        return poly.total_of(poly.times(poly.constant(c), self._symbol("y", 0, k)) for k, c in enumerate(column))

    def _slope(self, layer: int, unit: int) -> Polynomial:
        sigma = self.symbols.system.arch.sigma
        if sigma.degree is None:
            return self._symbol("slope", layer, unit)
        mask = self._mask(layer, unit)
        if sigma.degree == 1:
            return mask
        return poly.times(poly.times(poly.constant(2), self._once("pre", layer, unit)), mask)

    def _error(self, unit: int) -> Polynomial:
        last = self.symbols.system.arch.widths[-1] - 1
        if self.symbols.system.softmax and unit == last:
            return poly.total_of({key: -c for key, c in self._error(o).items()} for o in range(last))
        return self._symbol("e", 0, unit)

    def _signal(self, unit: int) -> Polynomial:
        if self.symbols.system.family.route == "direct-target":
            return self._symbol("y", 0, unit)
        return self._error(unit)

    def _feedback(self, layer: int, row: int, column: int) -> Polynomial:
        system = self.symbols.system
        if system.family.source == "weight":
            return poly.variable(int(system.arch.weight_at[layer][row, column]))
        if system.family.source == "moving":
            return poly.variable(int(self.symbols.moving_at[layer][row, column]))
        if self.numeric:
            return poly.constant(system.exact[layer][row, column])
        return poly.variable(int(self.symbols.feedback_at[layer][row, column]))

    def _substituted(self, f: Polynomial) -> Polynomial:
        """``f`` with the given numbers in place of the symbols of B."""
        dimension, values = self.symbols.system.dimension, self._given
        total: Polynomial = {}
        for monomial, coefficient in f.items():
            factor: int | Fraction = coefficient
            for number in monomial:
                factor *= values[number] if number >= dimension else 1
            poly.add_into(total, {tuple(n for n in monomial if n < dimension): factor})
        return total


def rate_of(
    symbols: Symbols,
    h: Polynomial,
    *,
    numeric: bool,
    to_output: bool,
    contexts: tuple[Context, ...] = (Context(),),
    drift: Callable[[Symbols, int], Polynomial] | None = None,
) -> list[Polynomial]:
    """∇h · F in each context; all empty exactly when h is a law.

    Args:
        symbols: the variables of the system.
        h: the candidate.
        numeric: put the given numbers for B; otherwise B's entries are symbols and the law is one for every B.
        to_output: expand up to the output error instead of stopping at the highest layer mentioned.
        contexts: the cases to check.
        drift: the part of each state variable's rate that the optimiser adds.
    """
    last = symbols.system.arch.depth - 1
    layers = symbols.layers(h)
    rates = []
    for context in contexts:
        low = context.lowest(layers)
        high = last if to_output else max(layers, default=last)
        rates.append(Expansion(symbols, low, high, numeric, context, drift).rate(h))
    return rates
