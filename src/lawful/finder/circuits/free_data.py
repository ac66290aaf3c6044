"""What may be drawn at random as data: ReLU patterns that occur, softmax weights and roots that obey no other relation.

**Patterns.** Those of random real points: each is that of an open set of (θ, x), where the field is the one with these
slopes; a law that is analytic everywhere stands still under it everywhere.

**Softmax weights.** y_1, …, y_n: the differences of scores within the rows of all softmaxes. By Ax (1971), functions
that are linearly independent over ℚ modulo constants satisfy, together with t = (θ, all data),
tr.deg ℂ(t, y, eʸ) ≥ n + rank ∂y/∂t (t itself may be added to the y's, so that the rank is that of t). Where y_i is
algebraic over ℂ(t) and the exponentials before it, ℂ(t, y, eʸ) is algebraic over t and eʸ, so these are algebraically
independent: also through softmaxes of softmaxes, whose scores are tested with the weights before them free. Several
data x, x', … share one θ. A relation Σ_x Σ_i q_xi y_i(θ, x) = c says that each Σ_i q_xi y_i(θ, x) depends on θ alone,
so what is needed, and tested, is: no Σ q_i (y_i(θ, x) − y_i(θ, x')) is zero for all θ, x, x'. The rank of random such
rows modulo p can only be too small, so that full rank proves it.

**Roots.** r with r²(v + ε) = 1 may have either sign where v + ε is no function of θ times a square. Such a product
would be a square modulo p for all x or for none; so both must occur at one θ, one root after the other, among the
points where the roots before are rational.

With a ReLU below a softmax or norm, both depend on the pattern, and patterns that fail are not drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from lawful.errors import SettingError
from lawful.finder import residues as ff
from lawful.finder.circuits.arithmetic import Floats, Residues, Value
from lawful.finder.circuits.circuit import Circuit, forward
from lawful.finder.circuits.nodes import Input, InverseRoot, Mask, Softmax, State

Patterns = Mapping[int, np.ndarray]
"""Per ReLU node which units are on, (rows, units)."""

_ZERO = 1e-9
_EXTRA = 24
_BATCH = 20_000
_TRIES = 16


def patterns(circuit: Circuit, rows: int, rng: np.random.Generator) -> Patterns:
    """Which units are on at random real (θ, x); a unit that is zero is off, as in PyTorch."""
    on: dict[int, np.ndarray] = {}

    def given(number: int, inputs: Sequence[Value]) -> np.ndarray:
        node = circuit.nodes[number]
        match node:
            case Mask():
                on[number] = inputs[0] > _ZERO
                return np.where(on[number], 1.0, float(node.slope))
            case Softmax():
                P = np.exp(inputs[0] - inputs[0].max(axis=-1, keepdims=True)) + 1e-300
                return P / np.stack([P[:, node.row == r].sum(axis=-1) for r in node.row], axis=-1)
            case InverseRoot():
                v = inputs[0] + node.epsilon
                return 1 / np.sqrt(np.where(v > 0, v, 1.0))
            case _:
                return rng.standard_normal((rows, node.size))

    forward(circuit, State(Floats(), rng.standard_normal((rows, circuit.size))), given)
    return on


def allowed(circuit: Circuit, on: Patterns, rows: int) -> np.ndarray:
    """The rows whose pattern leaves softmax weights and roots free."""
    below = circuit.masks_below
    if not below:
        return np.full(rows, not obstacle(circuit, b""))
    together = np.packbits(np.concatenate([on[number] for number in below], axis=1), axis=1)
    different, which = np.unique(together, axis=0, return_inverse=True)
    return np.array([not obstacle(circuit, row.tobytes()) for row in different])[which.ravel()]


def refuse_dependent(circuit: Circuit) -> None:
    """Networks whose softmax weights or roots are no free data under any pattern.

    Raises:
        SettingError: naming the nodes.
    """
    rng, why = np.random.default_rng(11), ""
    for _ in range(_TRIES):
        on = patterns(circuit, 1, rng)
        bits = np.concatenate([on[number][0] for number in circuit.masks_below] or [np.zeros(0, dtype=bool)])
        found = obstacle(circuit, np.packbits(bits).tobytes())
        if not found:
            return
        why = why or found
    raise SettingError(f"find_laws: {circuit.name}: {why}")


@lru_cache(maxsize=4096)
def obstacle(circuit: Circuit, pattern: bytes) -> str:
    """Why weights and roots are not free under a pattern of ``circuit.masks_below`` (bits); empty when they are."""
    columns = [(number, u, int(np.flatnonzero(node.row == node.row[u])[0]))
               for number, node in enumerate(circuit.nodes) if isinstance(node, Softmax)
               for u in range(node.size) if (node.row[:u] == node.row[u]).any()]  # fmt: skip
    roots = {(n, u) for n, node in enumerate(circuit.nodes) if isinstance(node, InverseRoot) for u in range(node.size)}
    echelon, rng = ff.Echelon(len(columns)), np.random.default_rng(13)
    for _ in range(len(columns) + _EXTRA):
        scores, mixed = _scores(circuit, pattern, len(columns) + _EXTRA, rng)
        roots -= mixed
        if columns and len(next(iter(scores.values()))):
            y = np.stack([ff.reduce(scores[n][:, u] - scores[n][:, first]) for n, u, first in columns], axis=1)
            echelon.add(ff.reduce(y[1:] - y[0]))
        if not roots and echelon.rank == len(columns):
            return ""
    if roots:
        number, unit = min(roots)
        return (
            f"the root of norm node {number}, unit {unit + 1}, has a sign of its own: its variance is a square, up to "
            "parameters and other variances (a norm with epsilon 0 over fewer than two independent units, or twice "
            "over the same ones). Give it epsilon > 0, or use one norm for both"
        )
    relation = np.flatnonzero(echelon.null_space()[0])
    where = " and ".join(dict.fromkeys(f"softmax node {columns[c][0]}" for c in relation))
    return (
        f"the weights of {where} obey a relation: their scores are linearly dependent, up to what does not depend on "
        "the data. Counting takes softmax weights for independent numbers, so that the count would be wrong"
    )


def _scores(
    circuit: Circuit, pattern: bytes, count: int, rng: np.random.Generator
) -> tuple[dict[int, np.ndarray], set[tuple[int, int]]]:
    """Scores by softmax at random data and one θ, all roots rational; and the (norm, unit)s where some were not."""
    rows = min(_BATCH, count * circuit.candidates_per_sample)
    good, scores, mixed = np.ones(rows, dtype=bool), dict[int, np.ndarray](), set[tuple[int, int]]()
    bits, start = np.unpackbits(np.frombuffer(pattern, dtype=np.uint8)), 0

    def given(number: int, inputs: Sequence[Value]) -> np.ndarray:
        nonlocal start
        node = circuit.nodes[number]
        match node:
            case Softmax():
                scores[number] = np.broadcast_to(inputs[0], (rows, node.size))
                return random_weights(node.row, rows, rng)
            case Mask() if number in circuit.masks_below:
                start += node.size
                return slopes(node, bits[start - node.size : start])
            case InverseRoot():
                r, v = roots_at(number, node, inputs[0], rows)
                for u in range(node.size):
                    rational = r[:, u] != 0
                    if (good & rational).any() and (good & ~rational & (v[:, u] != 0)).any():
                        mixed.add((number, u))
                    good[:] &= rational
                return r
            case Input() | Mask() | _:
                return ff.random_residues(rng, (rows, node.size))

    forward(circuit, State(Residues(), ff.random_residues(rng, (circuit.size,))), given)
    return {number: block[good] for number, block in scores.items()}, mixed


def slopes(node: Mask, on: np.ndarray) -> np.ndarray:
    """Modulo the finder's prime."""
    return np.where(on, 1.0, ff.residue(node.slope))


def random_weights(row: np.ndarray, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Random P whose rows sum to one."""
    P = ff.random_residues(rng, (rows, len(row)))
    for r in np.unique(row):
        *free, last = np.flatnonzero(row == r)
        P[:, last] = ff.reduce(1 - P[:, free].sum(axis=1))
    return P


def epsilon_at(number: int) -> np.ndarray:
    """The generic ε of a node: a fixed residue."""
    return ff.random_residues(np.random.default_rng([number, 77]), (1,))


def roots_at(number: int, node: InverseRoot, v: Value, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(v + ε)^{−1/2}, 0 where it is not rational, and v + ε; (rows, units)."""
    shifted = ff.add(v, epsilon_at(number)) if node.epsilon else v
    full = np.broadcast_to(shifted, (rows, node.size))
    return inverse_roots(full), full


@lru_cache(maxsize=1)
def _roots() -> np.ndarray:
    table = np.zeros(ff.PRIME, dtype=np.int32)
    numbers = np.arange((ff.PRIME + 1) // 2, dtype=np.int64)
    table[numbers * numbers % ff.PRIME] = numbers
    return table


def inverse_roots(v: np.ndarray) -> np.ndarray:
    """v^{−1/2} modulo p; 0 where v is no square, or 0."""
    numbers = np.asarray(v).astype(np.int64) % ff.PRIME
    root = _roots()[numbers].astype(np.int64)
    inverse, base, exponent = np.ones_like(numbers), numbers, ff.PRIME - 2
    while exponent:
        inverse = inverse * base % ff.PRIME if exponent & 1 else inverse
        base = base * base % ff.PRIME
        exponent >>= 1
    return ff.reduce((root * inverse % ff.PRIME).astype(np.float64))
