"""What an optimiser adds to the flow: nothing, weight decay, or momentum; laws may then depend on time through e^t.

    plain:     θ̇ = F
    decay:     θ̇_i = F_i - r_iθ_i             Ė = E      (time in units of 1/λ, layer i decays at r_iλ)
    momentum:  θ̇ = v,   v̇ = F - v             Ė = E      (time in units of 1/γ)

E = e^t is a coordinate, so that time-dependent laws are polynomials again: e^{2λt}q is E²q. The units lose nothing, as
F is linear in the free error signal. The rates r_i are whole numbers, so that e^{r_iλt} is a power of E.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from lawful.errors import SettingError
from lawful.finder import polynomials as poly
from lawful.finder import residues as ff
from lawful.finder.candidates import Candidate
from lawful.finder.fields import Data, System, update_field
from lawful.finder.polynomials import Polynomial
from lawful.finder.symbols import Symbols

MAX_RATE: Final = 100
"""Largest relative decay rate: a law carries E to the power of twice a rate."""


def _plain(system: System, theta: Sequence[Any], force: list[Any], clock: Sequence[Any]) -> list[Any]:
    return force


def _decay(system: System, theta: Sequence[Any], force: list[Any], clock: Sequence[Any]) -> list[Any]:
    rates = [float(-system.decay[layer]) for layer in system.block_layers()]
    return [ff.add(f, ff.scale(t, r)) for t, f, r in zip(theta, force, rates, strict=True)] + list(clock)


def _momentum(system: System, theta: Sequence[Any], force: list[Any], clock: Sequence[Any]) -> list[Any]:
    velocity = list(theta[len(force) :])
    return velocity + [ff.add(f, ff.scale(v, -1.0)) for v, f in zip(velocity, force, strict=True)] + list(clock)


GEOMETRIES: Final[dict[str, Callable[[System, Sequence[Any], list[Any], Sequence[Any]], list[Any]]]] = {
    "plain": _plain,
    "decay": _decay,
    "momentum": _momentum,
}
"""(system, state without clock, F, clock) -> the rate of the whole state."""


def decay_rates(geometry: str, decay: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """The relative rate of each layer: all 1 unless given.

    Raises:
        SettingError: an unknown geometry, rates without "decay", or rates that are not one whole number a layer.
    """
    if not isinstance(geometry, str) or geometry not in GEOMETRIES:
        raise SettingError(f"find_laws: geometry must be one of {', '.join(GEOMETRIES)}; got {geometry!r}")
    if geometry != "decay":
        if decay is not None:
            raise SettingError(f"find_laws: decay={decay!r} needs geometry='decay'; got geometry={geometry!r}")
        return ()
    try:
        rates = (
            (1,) * depth if decay is None else tuple(-1 if isinstance(r, bool) else operator.index(r) for r in decay)
        )
    except TypeError:
        rates = ()
    if len(rates) != depth or not any(rates) or not all(0 <= r <= MAX_RATE for r in rates):
        raise SettingError(
            f"find_laws: decay must be {depth} whole numbers from 0 to {MAX_RATE}, one a layer and not all 0, the "
            f"relative rates (1, 2: the second layer decays twice as fast); got {decay!r}"
        )
    return rates


def state_field(system: System, B: Sequence[Any], state: Sequence[Any], data: Data) -> list[Any]:
    """The rate of the whole state, block by block."""
    cut = len(system.shapes()) - (system.geometry != "plain")
    force = update_field(system, B, state, data)
    return GEOMETRIES[system.geometry](system, state[:cut], force, state[cut:])


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
    rate = system.decay[symbols.places[number].layer] if geometry == "decay" else 1
    return {(number,): -rate} if rate else {}


def in_geometry(symbols: Symbols, candidates: Iterator[Candidate]) -> Iterator[Candidate]:
    """What becomes of the plain flow's laws.

    Under decay E^g h for h whose terms all decay at the same rate g, the sum of the rates of their factors; under
    momentum h(θ) + h(v) and E h(v) for h of degree one. Angular momenta are laws of momentum alone.
    """
    system = symbols.system
    for candidate in candidates:
        if system.geometry == "plain" or candidate.kind == "angular":
            yield candidate
        elif system.geometry == "decay":
            yield from _grown(symbols, candidate)
        elif {sum(n < system.dimension for n in m) for m in candidate.polynomial} == {1}:
            yield from _with_velocity(symbols, candidate)


def _grown(symbols: Symbols, candidate: Candidate) -> Iterator[Candidate]:
    """E^g h where every term of h decays at the rate g."""
    system, h = symbols.system, candidate.polynomial
    rate = {n: system.decay[place.layer] for n, place in enumerate(symbols.places)}
    powers = {sum(rate.get(n, 0) for n in m) for m in h}
    if len(powers) != 1:
        return
    g = powers.pop()
    raised = {tuple(sorted((*m, *[system.dimension - 1] * g))): c for m, c in h.items()}
    text = f"{'e^t' if g == 1 else f'e^({g}t)'}·({candidate.formula}), t in units of 1/λ" if g else candidate.formula
    rates = tuple(system.decay[layer] for layer in sorted(symbols.layers(h)))
    orbit = None if candidate.orbit is None else ("decay", candidate.orbit, rates)
    yield replace(candidate, polynomial=raised, formula=text, orbit=orbit)


def _with_velocity(symbols: Symbols, candidate: Candidate) -> Iterator[Candidate]:
    """For h linear in the state: h at θ + v, and E h at v."""
    system, h = symbols.system, candidate.polynomial
    size, clock = system.num_parameters, system.dimension - 1
    moved = {tuple(sorted(n + size if n < size else n for n in m)): c for m, c in h.items()}
    text = f"({candidate.formula}) at θ + v, t in units of 1/γ"
    yield replace(candidate, polynomial=poly.plus(h, moved), formula=text, orbit=None)
    raised = {tuple(sorted((*m, clock))): c for m, c in moved.items()}
    text = f"e^t·({candidate.formula}) at v, t in units of 1/γ"
    yield replace(candidate, name=f"{candidate.name}, of the velocity", polynomial=raised, formula=text, orbit=None)
