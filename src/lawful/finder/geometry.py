"""What an optimiser adds to the flow: nothing, weight decay, or momentum; laws may then depend on time through e^t.

    plain:     θ̇ = F
    decay:     θ̇ = F - θ                 Ė = E      (time in units of 1/λ)
    momentum:  θ̇ = v,   v̇ = F - v        Ė = E      (time in units of 1/γ)

E = e^t is a coordinate, so that time-dependent laws are polynomials again: e^{2λt}q is E²q. The units lose nothing, as
F is linear in the free error signal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from lawful.finder import polynomials as poly
from lawful.finder import residues as ff
from lawful.finder.fields import Data, System, update_field
from lawful.finder.named_laws import Candidate
from lawful.finder.polynomials import Polynomial
from lawful.finder.symbols import Symbols


def _plain(theta: Sequence[Any], force: list[Any], clock: Sequence[Any]) -> list[Any]:
    return force


def _decay(theta: Sequence[Any], force: list[Any], clock: Sequence[Any]) -> list[Any]:
    return [ff.add(f, ff.scale(t, -1.0)) for t, f in zip(theta, force, strict=True)] + list(clock)


def _momentum(theta: Sequence[Any], force: list[Any], clock: Sequence[Any]) -> list[Any]:
    velocity = list(theta[len(force) :])
    return velocity + [ff.add(f, ff.scale(v, -1.0)) for v, f in zip(velocity, force, strict=True)] + list(clock)


GEOMETRIES: Final[dict[str, Callable[[Sequence[Any], list[Any], Sequence[Any]], list[Any]]]] = {
    "plain": _plain,
    "decay": _decay,
    "momentum": _momentum,
}
"""(state without clock, F, clock) -> the rate of the whole state."""


def state_field(system: System, B: Sequence[Any], state: Sequence[Any], data: Data) -> list[Any]:
    """The rate of the whole state, block by block."""
    cut = len(system.shapes()) - (system.geometry != "plain")
    force = update_field(system, B, state, data)
    return GEOMETRIES[system.geometry](state[:cut], force, state[cut:])


def drift(symbols: Symbols, number: int) -> Polynomial:
    """The part of a state variable's rate that does not depend on data."""
    system = symbols.system
    size, geometry = system.num_parameters, system.geometry
    if geometry == "plain":
        return {}
    if number == system.dimension - 1:
        return poly.variable(number)
    if geometry == "momentum" and number < size:
        return poly.variable(number + size)
    return {(number,): -1}


def in_geometry(symbols: Symbols, candidates: Iterator[Candidate]) -> Iterator[Candidate]:
    """What becomes of the plain flow's laws.

    Under decay E^g h for h homogeneous of degree g; under momentum h(θ) + h(v) and E h(v) for h of degree one.
    """
    system = symbols.system
    state, clock, size = system.dimension, system.dimension - 1, system.num_parameters
    for candidate in candidates:
        h = candidate.polynomial
        degrees = {sum(n < state for n in m) for m in h}
        if system.geometry == "plain":
            yield candidate
        elif system.geometry == "decay" and len(degrees) == 1:
            g = degrees.pop()
            raised = {tuple(sorted((*m, *[clock] * g))): c for m, c in h.items()}
            power = "e^t" if g == 1 else f"e^({g}t)"
            text = f"{power}·({candidate.formula}), t in units of 1/λ"
            yield replace(candidate, polynomial=raised, formula=text, orbit=("decay", candidate.orbit))
        elif system.geometry == "momentum" and degrees == {1}:
            moved = {tuple(sorted(n + size if n < size else n for n in m)): c for m, c in h.items()}
            text = f"({candidate.formula}) at θ + v, t in units of 1/γ"
            yield replace(candidate, polynomial=poly.plus(h, moved), formula=text, orbit=None)
            raised = {tuple(sorted((*m, clock))): c for m, c in moved.items()}
            text = f"e^t·({candidate.formula}) at v, t in units of 1/γ"
            yield replace(
                candidate, name=f"{candidate.name}, of the velocity", polynomial=raised, formula=text, orbit=None
            )
