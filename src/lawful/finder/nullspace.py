"""All polynomial laws up to a degree, by an exact null space.

Write h as a combination of monomials with unknown coefficients. Then ∇h · F = 0 at enough random points (θ, B, x, e, s)
modulo a prime is a linear system for the coefficients; its null space, reconstructed to rationals, is the space of
candidates, each of which is then proved by expansion. Nothing is decided by a tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations_with_replacement

import numpy as np

from lawful.errors import SettingError
from lawful.finder import residues as ff
from lawful.finder.fields import System, draw_data, flat
from lawful.finder.geometry import state_field
from lawful.finder.polynomials import Monomial, Polynomial
from lawful.finder.symbols import Symbols

MAX_MONOMIALS = 3000
_EXTRA_ROWS = 24


def num_monomials(symbols: Symbols, degree: int, *, numeric: bool) -> int:
    """How many monomials a search of this degree has."""
    state = symbols.system.dimension
    total = state if numeric else symbols.count
    constants = total - state
    return math.comb(total + degree, degree) - math.comb(constants + degree, degree)


def monomials(symbols: Symbols, degree: int, *, numeric: bool) -> list[Monomial]:
    """Every monomial of degree <= ``degree`` in the state (and, unless numeric, B) with a state variable in it.

    Raises:
        SettingError: more than 3000; the message names the degree that works.
    """
    size = num_monomials(symbols, degree, numeric=numeric)
    if size > MAX_MONOMIALS:
        fits = max((d for d in range(degree) if num_monomials(symbols, d, numeric=numeric) <= MAX_MONOMIALS), default=0)
        raise SettingError(
            f"find_laws: the search of degree {degree} has {size} monomials, at most {MAX_MONOMIALS} are searched "
            f"exactly (about a minute); degree {fits} would work for this network"
        )
    count = symbols.system.dimension if numeric else symbols.count
    state = symbols.system.dimension
    return [m for d in range(1, degree + 1) for m in combinations_with_replacement(range(count), d) if m[0] < state]


def polynomial_laws(
    symbols: Symbols,
    point: list[np.ndarray],
    degree: int,
    *,
    numeric: bool,
    seed: int = 0,
    progress: Callable[[float, str], None] | None = None,
) -> list[Polynomial]:
    """A basis of the candidates of degree <= ``degree``, sparsest first.

    Args:
        symbols: the variables of the system.
        point: fixes the orthant or the activation region where laws are local.
        degree: of h in the state and the symbols of B together.
        numeric: use the given numbers of B instead of symbols.
        seed: of the random evaluation points.
        progress: called with a fraction and a text.
    """
    basis = monomials(symbols, degree, numeric=numeric)
    rng = np.random.default_rng([seed, 7])
    echelon = ff.Echelon(len(basis))
    rows, wanted = 0, len(basis) + _EXTRA_ROWS
    while rows < wanted:
        count = min(256, wanted - rows)
        gained = len(echelon.add(_rates(symbols, point, basis, count, rng, numeric=numeric)))
        rows += count
        if progress is not None:
            progress(rows / wanted, f"{len(basis)} monomials of degree <= {degree}: {rows} conditions")
        if gained == 0 and count > _EXTRA_ROWS:
            break
    found = [rational_polynomial(vector, basis) for vector in echelon.null_space()]
    return sorted((h for h in found if h), key=lambda h: (max(map(len, h)), len(h)))


def _rates(
    symbols: Symbols,
    point: list[np.ndarray],
    basis: list[Monomial],
    count: int,
    rng: np.random.Generator,
    *,
    numeric: bool,
) -> np.ndarray:
    """ṁ of every monomial at ``count`` random points of the whole space of (θ, B, data)."""
    system = symbols.system
    theta = _random_states(system, point, count, rng)
    B = [np.broadcast_to(b, (count, *b.shape)) if numeric else _like(b, count, rng, system) for b in system.B]
    data = draw_data(system, point, count, rng)
    rates = flat(system, state_field(system, B, theta, data), count)
    values = np.concatenate([block.reshape(count, -1) for block in (*theta, *([] if numeric else B))], axis=1)
    rates = np.concatenate([rates, np.zeros((count, values.shape[1] - rates.shape[1]))], axis=1)
    columns, start = np.empty((count, len(basis))), 0
    for degree in sorted({len(m) for m in basis}):
        index = np.array([m for m in basis if len(m) == degree])
        total = np.zeros((count, len(index)))
        for position in range(degree):
            term = rates[:, index[:, position]]
            for other in range(degree):
                if other != position:
                    term = ff.reduce(term * values[:, index[:, other]])
            total = ff.reduce(total + term)
        columns[:, start : start + len(index)] = total
        start += len(index)
    return columns


def _random_states(system: System, point: list[np.ndarray], count: int, rng: np.random.Generator) -> list[np.ndarray]:
    theta = [ff.random_residues(rng, (count, *block.shape)) for block in point]
    if not system.family.orthant:
        return theta
    return [
        (np.abs(t) + 1) * np.where(block < 0, -1.0, 1.0) if block.ndim == 2 else t
        for t, block in zip(theta, point, strict=True)
    ]


def _like(b: np.ndarray, count: int, rng: np.random.Generator, system: System) -> np.ndarray:
    """Random feedback weights, with the signs of the given ones where the rule fixes them."""
    free = ff.random_residues(rng, (count, *b.shape))
    return (np.abs(free) + 1) * np.sign(b) if system.family.orthant else free


def rational_polynomial(vector: np.ndarray, basis: list[Monomial]) -> Polynomial:
    """The polynomial with small rational coefficients equal to ``vector`` modulo p; empty when there is none."""
    h: Polynomial = {}
    for column in np.flatnonzero(vector):
        coefficient = reconstruct(int(vector[column]))
        if coefficient is None:
            return {}
        h[basis[column]] = coefficient
    common = math.lcm(*(Fraction(c).denominator for c in h.values()))
    return {m: int(c * common) for m, c in h.items()}


def reconstruct(residue: int, modulus: int = ff.PRIME) -> Fraction | None:
    """The fraction n/d ≡ residue with |n|, d <= sqrt(p/2), which is unique, or None."""
    bound = math.isqrt(modulus // 2)
    r0, r1, s0, s1 = modulus, residue % modulus, 0, 1
    while r1 > bound:
        q = r0 // r1
        r0, r1, s0, s1 = r1, r0 - q * r1, s1, s0 - q * s1
    if s1 == 0 or abs(s1) > bound or math.gcd(r1, s1) != 1:
        return None
    return Fraction(r1, s1)
