"""Laws that are combinations of given polynomials, by an exact null space: Σ c_i ∇f_i · F = 0 at many random points."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from lawful.finder import residues as ff
from lawful.finder.circuits.fields import System, draw, rates, state_blocks
from lawful.finder.nullspace import reconstruct
from lawful.finder.polynomials import Polynomial

EXTRA_ROWS = 24


def rates_of(
    system: System, polynomials: Sequence[Polynomial], rows: int, rng: np.random.Generator, *, numeric: bool
) -> np.ndarray:
    """∇f · F for each polynomial f (of degree at most two) at random points: (rows, polynomials).

    Args:
        system: the circuit and its rule.
        polynomials: in the symbols of the system.
        rows: random points (θ, B, data).
        rng: of the points.
        numeric: B as given; otherwise B is random too.
    """
    size, points, moves, found = system.circuit.size, [], [], 0
    while found < rows:
        values = ff.random_residues(rng, (_candidates(system, rows - found), 2 * size))
        if numeric and not system.moving:
            values[:, size:] = ff.residues_of(system.exact)
        sample, kept = draw(system, values, rows - found, rng)
        blocks = rates(system, state_blocks(system, values[kept]), sample, B=values[kept, size:])
        moved = np.zeros((len(kept), 2 * size))
        moved[:, system.state] = np.concatenate([np.broadcast_to(b, (len(kept), b.shape[-1])) for b in blocks], axis=1)
        points.append(values[kept])
        moves.append(moved)
        found += len(kept)
    return _along(polynomials, np.concatenate(points), np.concatenate(moves))


def _candidates(system: System, rows: int) -> int:
    return rows * system.circuit.candidates_per_sample + 8


def _along(polynomials: Sequence[Polynomial], values: np.ndarray, moved: np.ndarray) -> np.ndarray:
    columns = np.zeros((len(values), len(polynomials)))
    for number, f in enumerate(polynomials):
        total = np.zeros(len(values))
        for monomial, coefficient in f.items():
            if len(monomial) == 1:
                term = moved[:, monomial[0]]
            else:
                u, v = monomial
                term = ff.reduce(ff.reduce(moved[:, u] * values[:, v]) + ff.reduce(values[:, u] * moved[:, v]))
            total = ff.reduce(total + ff.reduce(term * ff.residue(coefficient)))
        columns[:, number] = total
    return columns


def combinations(
    system: System, polynomials: Sequence[Polynomial], rng: np.random.Generator, *, numeric: bool
) -> list[list[Fraction]]:
    """The coefficients of every combination that is a law, as small rationals; each still has to be proved."""
    echelon = ff.Echelon(len(polynomials))
    echelon.add(rates_of(system, polynomials, len(polynomials) + EXTRA_ROWS, rng, numeric=numeric))
    found = []
    for vector in echelon.null_space():
        exact = [Fraction(0) if x == 0 else reconstruct(int(x)) for x in vector]
        if all(c is not None for c in exact):
            first = next(c for c in exact if c)
            found.append([c * (1 if first > 0 else -1) for c in exact if c is not None])
    return found
