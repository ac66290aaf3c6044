"""Check a circuit's certificate by the transposed program: other prime, other sweep, python-flint's ranks.

The finder sends errors down, in floats modulo 8388593. Here changes go up, in 64-bit integers modulo 2³¹ − 1, at new
random points: each law must stand still there, and the Lie rank must be the same. Then each law is expanded once more;
that expansion is the finder's own, and so is the test that softmax weights and roots are free data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import flint
import numpy as np

from lawful.errors import SettingError
from lawful.finder import jets
from lawful.finder.certificate import CIRCUIT_FORMAT, digest
from lawful.finder.circuits.arithmetic import Jets, Value
from lawful.finder.circuits.certificate import circuit_data, system_of
from lawful.finder.circuits.circuit import Circuit, forward, tangent
from lawful.finder.circuits.fields import System
from lawful.finder.circuits.free_data import allowed, patterns, refuse_dependent
from lawful.finder.circuits.nodes import Affine, Fixed, InverseRoot, Mask, Product, Softmax, State
from lawful.finder.circuits.proof import is_law
from lawful.finder.polynomials import Polynomial, gradient
from lawful.finder.verify import MORE, Check, has_sizes_of, odd_numbers, patience_of, terms_of

P = jets.MODULUS

POINTS = 3
"""At which each law must stand still. A polynomial of degree d that is not zero modulo p vanishes at a random point
with probability at most d/p (Schwartz, Zippel)."""

Progress = Callable[[float, str], None]

Data: TypeAlias = tuple[dict[int, Value], Value]
"""The data of each node that has some, and the output errors."""


def verify_circuit_certificate(content: Mapping[str, Any], progress: Progress | None = None) -> list[Check]:
    """Every check of a certificate, in order; the certificate stands when all are ok.

    Raises:
        SettingError: a part of the certificate is missing or of the wrong kind.
    """
    try:
        return list(_checks(content, progress))
    except (KeyError, TypeError, IndexError, ValueError, ArithmeticError, AttributeError) as error:
        raise SettingError(f"certificate: incomplete or of the wrong kind ({type(error).__name__}: {error})") from error


def _checks(content: Mapping[str, Any], progress: Progress | None) -> Iterator[Check]:
    yield Check("digest", content.get("sha256") == digest(content), "SHA-256 of the contents")
    system = system_of(content)
    odd = ", ".join(_inconsistent(content, system))
    yield Check("contents", not odd, odd or "format, prime, network, symbols and levels fit together")
    if odd:
        return
    why = _dependent(system.circuit)
    yield Check("free data", not why, why or "softmax weights and roots obey no relation but their own")
    if why:
        return
    rng = np.random.default_rng(int(content["sha256"][:8], 16))
    laws = [terms_of(law["polynomial"]) for law in content["laws"]]
    moving, bad = list[str](), list[str]()
    for number, (law, h) in enumerate(zip(content["laws"], laws, strict=True)):
        if progress is not None:
            progress(0.5 * number / len(laws), f"expanding {law['name']}")
        numeric = bool(law["given_feedback"])
        if not (h and _stands_still(system, h, numeric=numeric, rng=rng)):
            moving.append(law["name"])
        elif not is_law(system, h, numeric=numeric):
            bad.append(law["name"])
    still = f"{len(laws)} laws stand still at {POINTS} random points modulo 2^31 - 1"
    yield Check("laws", not moving, ", ".join(moving[:3]) if moving else still)
    yield Check("proofs", not bad, ", ".join(bad[:3]) if bad else "and expand to zero")
    values = _point(system, rng)
    independent = _gradient_rank(system, laws, values)
    yield Check("independence", independent == content["count"] == len(laws), f"gradient rank {independent}")
    yield Check("dimension", content["dimension"] == system.dimension, f"{system.dimension} coordinates")
    claimed = content["dimension"] - content["bound"]
    if not content["points"]:
        yield Check("rank", claimed == 0, "no rank was computed")
    else:
        if progress is not None:
            progress(0.5, "Lie rank modulo 2^31 - 1")
        best = max(content["points"], key=lambda point: point["rank"])
        found = _lie_rank(system, values, best["samples"][: len(best["levels"])], claimed, rng)
        claims_agree = best["rank"] == claimed == [0, *best["levels"]][-1]
        yield Check("rank", claims_agree and found >= claimed, f"Lie rank {found} modulo 2^31 - 1, {claimed} claimed")
    meets = content["count"] == content["bound"]
    yield Check("conclusion", content["certified"] == meets, f"{content['count']} laws, at most {content['bound']}")


def _dependent(circuit: Circuit) -> str:
    try:
        refuse_dependent(circuit)
    except SettingError as error:
        return str(error)
    return ""


def _inconsistent(content: Mapping[str, Any], system: System) -> Iterator[str]:
    """What no check below would notice, or would trip over."""
    if content["format"] != CIRCUIT_FORMAT:
        yield "format"
    yield from odd_numbers(content)
    if content["circuit"] != circuit_data(system.circuit) or not _well_formed(system.circuit):
        yield "circuit"
        return
    if content["feedback"] != [str(b) for b in system.exact] or len(system.exact) != system.circuit.size:
        yield "feedback"
        return
    if content["softmax"] is not system.softmax:
        yield "softmax"
    if content["symbols"] != system.names:
        yield "symbols"
    if not has_sizes_of(system.family, [system.exact[system.circuit.feedback]]):
        yield "feedback is not that of the rule"
    for point in content["points"]:
        (values,), levels, samples = point["state"], point["levels"], point["samples"]
        counts = [*levels, *samples, point["rank"], point["seed"]]
        whole = all(isinstance(x, int) and not isinstance(x, bool) for x in [*values, *counts])
        if not whole or len(values) != 2 * system.circuit.size or min(counts) < 0:
            yield "points"
        elif levels != sorted(levels) or len(samples) - len(levels) not in (0, 1) or point["rank"] < max([0, *levels]):
            yield "levels"


def _well_formed(circuit: Circuit) -> bool:
    """Every node reads nodes before it, of the sizes it expects; places lie within nodes and variables.

    Each variable has one owner, and flags are true or false.
    """
    owned = sum(m.weight_at.size + (0 if m.bias_at is None else m.bias_at.size) for m in circuit.maps)
    flags = [getattr(node, name) for node in circuit.nodes for name in ("fed", "epsilon") if name in vars(node)]
    if owned != circuit.size or not all(isinstance(flag, bool) for flag in flags):
        return False
    if type(circuit.classes) is not int or circuit.classes < 0 or circuit.nodes[-1].size % circuit.logits:
        return False
    for number, node in enumerate(circuit.nodes):
        if not all(0 <= parent < number for parent in node.parents):
            return False
        widths, tables = [node.size] * len(node.parents), list[tuple[np.ndarray, tuple[int, ...]]]()
        match node:
            case Affine():
                widths = [node.width]
                tables = [
                    (node.places, (node.size, node.width, circuit.size)),
                    (node.offsets, (node.size, circuit.size)),
                ]
            case Fixed():
                widths, tables = [node.width], [(node.places, (node.size, node.width))]
            case Product():
                widths, tables = list(node.widths), [(node.places, (node.size, *node.widths))]
            case Softmax():
                tables = [(node.row[:, None], (node.size,))]
            case _:
                pass
        inside = all(((at >= 0) & (at < np.array(below))).all() for at, below in tables)
        if not inside or [circuit.nodes[parent].size for parent in node.parents] != widths:
            return False
    return True


def _point(system: System, rng: np.random.Generator) -> np.ndarray:
    """A new value for each symbol; B as given unless it moves."""
    size, ar = system.circuit.size, Jets()
    theta = rng.integers(0, P, size)
    B = rng.integers(0, P, size) if system.moving else ar.constant(system.exact)[0]
    return np.concatenate([theta, B])


def _draw(system: System, values: np.ndarray, rows: int, rng: np.random.Generator) -> Data:
    """Data at a point (symbols,), each block (rows, 1, units), such that all square roots are rational; and errors."""
    circuit, ar, parts, found = system.circuit, Jets(), [], 0
    shifts = {number: int(x) for number, x in enumerate(np.random.default_rng(77).integers(1, P, len(circuit.nodes)))}
    while found < rows:
        many = (rows - found) * min(circuit.candidates_per_sample, 256) + 8
        on, data = patterns(circuit, many, rng), dict[int, np.ndarray]()
        good = allowed(circuit, on, many)

        def given(
            number: int, inputs: Sequence[Value], many: int = many, good: Any = good, data: Any = data, on: Any = on
        ) -> Value:
            node = circuit.nodes[number]
            block = rng.integers(0, P, (many, 1, node.size))
            if isinstance(node, Mask):
                block = np.where(on[number], 1, ar.constant(np.array([node.slope]))[0])[:, None]
            elif isinstance(node, Softmax):
                for r in np.unique(node.row):
                    *free, last = np.flatnonzero(node.row == r)
                    block[..., last] = (1 - block[..., free].sum(axis=-1)) % P
            elif isinstance(node, InverseRoot):
                v = np.broadcast_to((inputs[0][0] + shifts[number] * node.epsilon) % P, block.shape)
                block = _power(_power(v, (P + 1) // 4), P - 2)
                good &= (block * block % P * v % P == 1).all(axis=(1, 2))
            data[number] = block
            return [block]

        forward(circuit, State(ar, [values[None, None, : circuit.size]]), given)
        error = rng.integers(0, P, (many, 1, circuit.nodes[-1].size))
        if system.softmax:
            each = error.reshape(many, -1, circuit.logits)
            each[..., -1] = -each[..., :-1].sum(axis=-1) % P
        kept = np.flatnonzero(good)[: rows - found]
        parts.append(({number: block[kept] for number, block in data.items()}, error[kept]))
        found += len(kept)
    data = {number: [np.concatenate([d[number] for d, _ in parts])] for number in parts[0][0]}
    return data, [np.concatenate([e for _, e in parts])]


def _power(base: np.ndarray, exponent: int) -> np.ndarray:
    result = np.ones_like(base)
    while exponent:
        result = result * base % P if exponent & 1 else result
        base = base * base % P
        exponent >>= 1
    return result


def _work(system: System, state: Value, B: Value, data: Data, directions: np.ndarray) -> Value:
    """−⟨e, change of the output⟩ for each direction (k, D) of θ: (rows, k)."""
    circuit, ar, size = system.circuit, Jets(), system.circuit.size
    theta = ar.take(state, np.arange(size))
    if system.family.source == "weight":
        B = theta
    elif system.moving:
        B = ar.collect(ar.take(state, np.arange(size, system.dimension)), circuit.feedback, size)
    s = State(ar, theta, B, [directions])
    visited = forward(circuit, s, lambda number, _: data[0][number])
    change = tangent(circuit, s, visited)
    work = ar.times(change, ar.times(data[1], ar.constant(np.array([-1], dtype=object))))
    total = ar.collect(work, np.zeros(circuit.nodes[-1].size, dtype=int), 1)
    return [part[..., 0] if part.ndim else part for part in total]


def _field(system: System, state: Value, B: Value, data: Data) -> Value:
    """F in every coordinate of the state, (rows, 1, dimension)."""
    rate = _work(system, state, B, data, np.eye(system.circuit.size, dtype=np.int64))
    rate = [part[:, None, :] if part.ndim else part for part in rate]
    return Jets().take(rate, system.state % system.circuit.size)


def _bracket(system: System, state: Value, B: Value, data: Sequence[Data]) -> Value:
    first, *rest = data
    if not rest:
        return _field(system, state, B, first)
    bit = len(state)
    inner = _bracket(system, jets.along(state, _field(system, state, B, first), bit), B, rest)
    back = _field(system, jets.along(state, inner[:bit], bit), B, first)
    return jets.plus(jets.derivative(inner, bit), jets.derivative(back, bit), -1)


def _lie_rank(
    system: System, values: np.ndarray, samples: Sequence[int], claimed: int, rng: np.random.Generator
) -> int:
    """The rank of as many brackets of each level as the certificate used, and some more while it is not reached."""
    size = system.circuit.size
    coordinates, B = [values[None, None, system.state]], [values[None, None, size:]]

    def brackets(level: int, many: int) -> np.ndarray:
        data = [_draw(system, values, many, rng) for _ in range(level + 1)]
        block = _bracket(system, coordinates, B, data)[0]
        return np.broadcast_to(block, (many, 1, system.dimension))[:, 0]

    levels = [(level, count) for level, count in enumerate(samples) if count]
    rows = [brackets(level, 2 * count + 8) for level, count in levels]
    rank = _rank(np.concatenate(rows)) if rows else 0
    patterns = any(isinstance(node, Mask) for node in system.circuit.nodes)
    for _ in range(patience_of(system.dimension, patterns) if rows else 0):
        if rank >= claimed:
            break
        rows += [brackets(level, MORE) for level, _ in levels]
        rank = _rank(np.concatenate(rows))
    return rank


def _stands_still(system: System, h: Polynomial, *, numeric: bool, rng: np.random.Generator) -> bool:
    """∇h · F = 0 modulo 2³¹ − 1 at random points, for 24 random data each."""
    return all(_still_at_random(system, h, numeric=numeric, rng=rng) for _ in range(POINTS))


def _still_at_random(system: System, h: Polynomial, *, numeric: bool, rng: np.random.Generator) -> bool:
    size, ar = system.circuit.size, Jets()
    values = _point(system, rng)
    if not numeric:
        values[size:] = rng.integers(0, P, size)
    if system.family.source == "weight":
        values[size:] = values[:size]
    slopes = _slopes(system, h, values)
    direction = np.zeros((1, size), dtype=np.int64)
    np.add.at(direction[0], system.state % size, slopes)
    state = ar.take([values[None, None]], system.state)
    work = _work(system, state, [values[None, None, size:]], _draw(system, values, 24, rng), direction % P)
    return not np.any(work[0])


def _slopes(system: System, h: Polynomial, values: np.ndarray) -> np.ndarray:
    """∇h by the coordinates of the state, modulo 2³¹ − 1."""
    place = {int(symbol): number for number, symbol in enumerate(system.state)}
    row = np.zeros(system.dimension, dtype=np.int64)
    for number, slope in gradient(h, place.__contains__).items():
        total = 0
        for monomial, coefficient in slope.items():
            c = Fraction(coefficient)
            term = c.numerator * pow(c.denominator, -1, P)
            for other in monomial:
                term = term * int(values[other]) % P
            total += term
        row[place[number]] = total % P
    return row


def _gradient_rank(system: System, laws: Sequence[Polynomial], values: np.ndarray) -> int:
    if not laws:
        return 0
    rows = np.stack([_slopes(system, h, values) for h in laws])
    return _rank(rows)


def _rank(rows: np.ndarray) -> int:
    height, width = rows.shape
    return int(flint.nmod_mat(height, width, rows.ravel().tolist(), P).rank())
