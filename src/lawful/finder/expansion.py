"""The verifier's expansion of ∇h · F, in python-flint's rational polynomials."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any

import flint

from lawful.finder.polynomials import Polynomial
from lawful.finder.proof import Context
from lawful.finder.symbols import Symbols

Key = tuple[Any, ...]


@dataclass
class _Ring:
    """Symbols by key: the first pass only lists them (every symbol is 1), the second works with generators."""

    generators: dict[Key, Any] = field(default_factory=dict)
    listed: dict[Key, None] = field(default_factory=dict)

    def __call__(self, *key: Any) -> Any:
        self.listed.setdefault(key)
        return self.generators.get(key, 1)

    def filled(self) -> _Ring:
        names = [f"v{number}" for number in range(max(1, len(self.listed)))]
        context = flint.fmpq_mpoly_ctx.get(names, "lex")
        return _Ring(dict(zip(self.listed, context.gens(), strict=False)))


def flint_rate(symbols: Symbols, h: Polynomial, *, numeric: bool, context: Context | None = None) -> bool:
    """True when ∇h · F does not expand to zero (so False proves the law).

    Args:
        symbols: the variables.
        h: the law.
        numeric: take the given numbers for B.
        context: known input and activation pattern, or None for symbols.
    """
    first = _Ring()
    _rate(first, symbols, h, numeric, context)
    return _rate(first.filled(), symbols, h, numeric, context) != 0


def _rate(ring: _Ring, symbols: Symbols, h: Polynomial, numeric: bool, context: Context | None) -> Any:
    system = symbols.system
    arch, family = system.arch, system.family
    last, dimension = arch.depth - 1, system.dimension
    layers = symbols.layers(h)
    low = min(layers, default=0) if context is None else context.lowest(layers)
    stop = last if numeric or context is not None else max(layers, default=last)
    given = {
        int(at): value
        for ats, block in zip(symbols.feedback_at, system.exact, strict=True)
        for at, value in zip(ats.ravel(), block.ravel(), strict=True)
    }

    def value(number: int) -> Any:
        return rational(given[number]) if number in given and numeric else ring("v", number)

    def mask(i: int, j: int) -> Any:
        if arch.sigma.slopes is None or system.acts_linearly(i):
            return 1
        known = None if context is None or context.masks is None else context.masks[i][j]
        return ring("s", i, j) if known is None else rational(known)

    @cache
    def pre(i: int, j: int) -> Any:
        total = sum(ring("v", int(at)) * entering(i, k) for k, at in enumerate(arch.weight_at[i][j]))
        bias = arch.bias_at[i]
        return total if bias is None else total + ring("v", int(bias[j]))

    @cache
    def entering(i: int, k: int) -> Any:
        if i == 0 and context is not None and context.x is not None:
            return rational(context.x[k])
        if i == low or arch.sigma.degree is None:
            return ring("a", i, k)
        return pre(i - 1, k) ** arch.sigma.degree * mask(i - 1, k)

    def error(o: int) -> Any:
        if system.softmax and o == arch.widths[-1] - 1:
            return -sum(ring("e", other) for other in range(o))
        return ring("e", o)

    def slope(i: int, j: int) -> Any:
        if arch.sigma.degree is None:
            return ring("slope", i, j)
        return mask(i, j) if arch.sigma.degree == 1 else 2 * pre(i, j) * mask(i, j)

    def carried(i: int, j: int) -> Any:
        if family.route == "signs":
            if not numeric or system.sent_signs is None:
                return ring("sign", i, j)
            return sum(ring("y", k) * rational(c) for k, c in enumerate(system.sent_signs[i][:, j]))
        if family.direct:
            signal = (lambda o: ring("y", o)) if family.route == "direct-target" else error
            return sum(signal(o) * value(int(symbols.feedback_at[i + 1][o, j])) for o in range(arch.widths[-1]))
        tables = {"weight": arch.weight_at, "moving": symbols.moving_at}.get(family.source, symbols.feedback_at)
        return sum(delta(i + 1, o) * value(int(tables[i + 1][o, j])) for o in range(arch.widths[i + 2]))

    @cache
    def delta(i: int, j: int) -> Any:
        if i == last:
            return error(j)
        if i == stop and not family.direct and family.route != "signs":
            return ring("delta", i, j)
        return carried(i, j) * slope(i, j)

    def rate(number: int) -> Any:
        size, geometry = system.num_parameters, system.geometry
        place = symbols.forced(number)
        force: Any = 0
        if place is not None:
            force = -delta(place.layer, place.row)
            force = force if place.column is None else force * entering(place.layer, place.column)
        if geometry == "plain":
            return force
        if geometry == "momentum" and number < size:
            return ring("v", number + size)
        if number == dimension - 1:
            return ring("v", number)
        rate = system.decay[place.layer] if geometry == "decay" and place is not None else 1
        return force - rate * ring("v", number)

    total: Any = 0
    for monomial, coefficient in h.items():
        for at, number in enumerate(monomial):
            if number < dimension:
                others = rational(coefficient)
                for other in (*monomial[:at], *monomial[at + 1 :]):
                    others = others * value(other)
                total = total + others * rate(number)
    return total


def rational(x: Any) -> flint.fmpq:
    """A rational for python-flint."""
    fraction = Fraction(x)
    return flint.fmpq(fraction.numerator, fraction.denominator)
