"""Check a certificate with a second program: other prime, other arithmetic, python-flint's polynomials and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import flint
import numpy as np

from lawful.errors import SettingError
from lawful.finder import jets
from lawful.finder.architectures import Architecture
from lawful.finder.certificate import FORMAT, digest
from lawful.finder.contexts import contexts_of, steady_context
from lawful.finder.expansion import flint_rate
from lawful.finder.families import Family, family_of
from lawful.finder.fields import System, lies_on_wall, split
from lawful.finder.geometry import decay_rates
from lawful.finder.independent_fields import bracket_matrix
from lawful.finder.polynomials import Polynomial
from lawful.finder.residues import PRIME
from lawful.finder.symbols import Symbols

Progress = Callable[[float, str], None]

PATIENCE, MORE = 20, 64
"""How often brackets are added where the rank is below the claimed one, and how many of each level."""


@dataclass(frozen=True)
class Check:
    """One thing that was checked."""

    what: str
    ok: bool
    detail: str = ""


def verify_certificate(content: Mapping[str, Any], progress: Progress | None = None) -> list[Check]:
    """Every check of a certificate, in order; the certificate stands when all are ok.

    Raises:
        SettingError: a part of the certificate is missing or of the wrong kind.
    """
    try:
        return list(_checks(content, progress))
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise SettingError(f"certificate: incomplete or of the wrong kind ({type(error).__name__}: {error})") from error


def _checks(content: Mapping[str, Any], progress: Progress | None) -> Iterator[Check]:
    yield Check("digest", content.get("sha256") == digest(content), "SHA-256 of the contents")
    system = _system(content["system"])
    symbols = Symbols(system)
    odd = ", ".join(_inconsistent(content, system, symbols))
    yield Check("contents", not odd, odd or "format, prime, variables, shapes and levels fit together")
    if odd:
        return
    laws = [(law, terms_of(law["polynomial"])) for law in content["laws"]]
    bad = [law["name"] for law, h in _with_progress(laws, progress) if not _is_law(symbols, content, law, h)]
    yield Check("proofs", not bad, ", ".join(bad[:3]) if bad else f"{len(laws)} laws expand to zero")
    rng = np.random.default_rng(int(content["sha256"][:8], 16))
    state, B = _point(system, content, rng)
    independent = _gradient_rank(symbols, [h for _, h in laws], state, B)
    yield Check("independence", independent == content["count"] == len(laws), f"gradient rank {independent}")
    claimed = content["dimension"] - content["bound"]
    dimension_ok = content["dimension"] == system.dimension
    yield Check("dimension", dimension_ok, f"{system.dimension} coordinates")
    if not content["points"]:
        yield Check("rank", claimed == 0, "no rank was computed")
    else:
        best = max(content["points"], key=lambda p: p["rank"])
        ranks_ok = best["rank"] == claimed == [0, *best["levels"]][-1]
        if progress is not None:
            progress(0.5, "Lie rank modulo 2^31 - 1")
        found = _lie_rank(system, state, B, best["samples"][: len(best["levels"])], claimed, rng)
        yield Check("rank", ranks_ok and found >= claimed, f"Lie rank {found} modulo 2^31 - 1, {claimed} claimed")
    meets = content["count"] == content["bound"] and system.arch.sigma.degree is not None
    yield Check("conclusion", content["certified"] == meets, f"{content['count']} laws, at most {content['bound']}")


def _inconsistent(content: Mapping[str, Any], system: System, symbols: Symbols) -> Iterator[str]:
    """What no check below would notice, or would trip over."""
    if content["format"] != FORMAT:
        yield "format"
    yield from odd_numbers(content)
    if content["system"]["decay"] != list(system.decay):
        yield "decay"
    if [block.shape for block in system.exact[1:]] != _feedback_shapes(system):
        yield "feedback"
        return
    if content["laws"] and content["variables"] != symbols.names:
        yield "variables"
    sizes = [int(np.prod(shape)) for shape in system.shapes()]
    fitting = [point for point in content["points"] if [len(block) for block in point["state"]] == sizes]
    if not all(_is_of_rule(system, _certified_point(point, system)) for point in fitting):
        yield "feedback is not that of the rule at the point"
    if any(lies_on_wall(system, _certified_point(point, system)) for point in fitting):
        yield "a unit is neither on nor off at a point"
    for point in content["points"]:
        state, levels, samples = point["state"], point["levels"], point["samples"]
        numbers = [x for block in state for x in block] + levels + samples + [point["rank"], point["seed"]]
        whole = all(isinstance(x, int) and not isinstance(x, bool) for x in numbers)
        if not whole or [len(block) for block in state] != sizes or min([*levels, *samples, point["seed"]]) < 0:
            yield "points"
        elif levels != sorted(levels) or len(samples) - len(levels) not in (0, 1) or point["rank"] < max([0, *levels]):
            yield "levels"


def odd_numbers(content: Mapping[str, Any]) -> Iterator[str]:
    """What is no whole number, or no truth value, where there must be one."""
    if content["prime"] != PRIME:
        yield "prime"
    for name in ("count", "bound", "dimension"):
        if type(content[name]) is not int or content[name] < 0:
            yield name
    if type(content["certified"]) is not bool:
        yield "certified"
    if not all(type(law["given_feedback"]) is bool for law in content["laws"]):
        yield "laws"


def _is_of_rule(system: System, point: Sequence[np.ndarray]) -> bool:
    """B of a sign rule has the signs of W, that of uniform sign symmetry no sizes; a monotone net is positive."""
    weights, _, _ = split(system, point)
    pairs = list(zip(system.exact[1:], weights[1:], strict=True))
    if system.family.orthant == "positive":
        return all((B > 0).all() and (W > 0).all() for B, W in pairs)
    if system.family.source != "sign":
        return True
    alike = all((np.sign(B.astype(float)) == np.sign(W)).all() for B, W in pairs)
    return alike and has_sizes_of(system.family, [B for B, _ in pairs])


def has_sizes_of(family: Family, feedback: Sequence[np.ndarray]) -> bool:
    """Whether B has the sizes of the rule: all 1 for uniform sign symmetry."""
    return family.name != "usf" or all((abs(B) == 1).all() for B in feedback)


def _feedback_shapes(system: System) -> list[tuple[int, int]]:
    n = system.arch.widths
    direct = system.family.direct
    return [(n[-1] if direct else n[i + 1], n[i]) for i in range(1, system.arch.depth)]


def _with_progress(laws: list[Any], progress: Progress | None) -> Iterator[Any]:
    for number, law in enumerate(laws):
        if progress is not None:
            progress(0.5 * number / len(laws), f"expanding {law[0]['name']}")
        yield law


def _system(given: Mapping[str, Any]) -> System:
    family = family_of(given["rule"])
    arch = Architecture(tuple(given["widths"]), given["activation"], tuple(given["biases"]))
    if [type(b) for b in given["biases"]] != [bool] * arch.depth:
        raise SettingError(f"certificate: expected {arch.depth} biases, true or false; got {given['biases']}")
    blocks = [np.array([[Fraction(x) for x in row] for row in block], dtype=object) for block in given["feedback"]]
    inputs = given["inputs"]
    exact_inputs = None if inputs is None else np.array([[Fraction(x) for x in row] for row in inputs], dtype=object)
    exact = (np.zeros((0, 0), dtype=object), *blocks)
    decay = decay_rates(given["geometry"], given["decay"] or None, arch.depth)
    return System(arch, family, exact, bool(given["softmax"]), exact_inputs, given["geometry"], decay)


def terms_of(polynomial: Sequence[Any]) -> Polynomial:
    """A law as it stands in a certificate.

    Raises:
        ValueError: a monomial that comes twice or is not sorted, so that a reader would see another law; a constant.
    """
    terms: Polynomial = {tuple(monomial): Fraction(coefficient) for coefficient, monomial in polynomial}
    if len(terms) < len(polynomial) or any(list(m) != sorted(m) or not m for m in terms):
        raise ValueError("expected every monomial of a law once, its variables sorted, and no constant")
    return terms


def _certified_point(point: Mapping[str, Any], system: System) -> list[np.ndarray]:
    state = point["state"]
    shapes = system.shapes()
    return [np.array(block, dtype=np.float64).reshape(shape) for block, shape in zip(state, shapes, strict=True)]


def _is_law(symbols: Symbols, content: Mapping[str, Any], law: Mapping[str, Any], h: Polynomial) -> bool:
    numeric = bool(law["given_feedback"])
    if not flint_rate(symbols, h, numeric=numeric):
        return True
    system = symbols.system
    if system.inputs is None and not system.family.orthant:
        return False
    steady = steady_context(system)
    if steady is not None and not flint_rate(symbols, h, numeric=numeric, context=steady):
        return True
    contexts = contexts_of(system, _certified_point(content["points"][0], system))
    return not any(flint_rate(symbols, h, numeric=numeric, context=context) for context in contexts)


def _point(
    system: System, content: Mapping[str, Any], rng: np.random.Generator
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A new random state (signs as in the certificate where laws are local), and B, modulo 2³¹ - 1."""
    fixed = _certified_point(content["points"][0], system) if content["points"] else []
    local = system.inputs is not None and system.arch.sigma.slopes is not None
    state = []
    for number, shape in enumerate(system.shapes()):
        block = rng.integers(0, jets.MODULUS, shape)
        if local:
            block = fixed[number].astype(np.int64)
        elif system.family.orthant and len(shape) == 2:
            block = np.where(fixed[number] < 0, -1, 1) * rng.integers(1, 2**20, shape)
        state.append(block)
    return state, [modular(block) for block in system.exact]


def modular(block: np.ndarray) -> np.ndarray:
    """Rationals modulo 2³¹ - 1."""
    p = jets.MODULUS
    values = [Fraction(x).numerator * pow(Fraction(x).denominator, -1, p) % p for x in block.ravel()]
    return np.array(values, dtype=np.int64).reshape(block.shape)


def _gradient_rank(symbols: Symbols, laws: Sequence[Polynomial], state: list[np.ndarray], B: list[np.ndarray]) -> int:
    p, dimension = jets.MODULUS, symbols.system.dimension
    values = [int(x) % p for block in (*state, *B) for x in block.ravel()]
    matrix = flint.nmod_mat(max(1, len(laws)), dimension, p)
    for row, h in enumerate(laws):
        slopes: dict[int, int] = {}
        for monomial, coefficient in h.items():
            c = Fraction(coefficient).numerator * pow(Fraction(coefficient).denominator, -1, p)
            for at, number in enumerate(monomial):
                if number < dimension:
                    term = c
                    for other in (*monomial[:at], *monomial[at + 1 :]):
                        term = term * values[other] % p
                    slopes[number] = (slopes.get(number, 0) + term) % p
        for number, slope in slopes.items():
            matrix[row, number] = slope
    return int(matrix.rank())


def _lie_rank(
    system: System,
    state: list[np.ndarray],
    B: list[np.ndarray],
    samples: Sequence[int],
    claimed: int,
    rng: np.random.Generator,
) -> int:
    """The rank of as many brackets of each level as the certificate used, and as many again.

    Rare activation patterns may take more: some are added, a few times, while the claimed rank is not reached.
    """
    levels = [(level, count) for level, count in enumerate(samples) if count]
    rows = [bracket_matrix(system, state, B, level, 2 * count + 8, rng) for level, count in levels]
    rank = _rank(rows)
    for _ in range(patience_of(system.dimension, bool(system.arch.sigma.slopes) or system.inputs is not None)):
        if rank >= claimed:
            break
        rows += [bracket_matrix(system, state, B, level, MORE, rng) for level, _ in levels]
        rank = _rank(rows)
    return rank


def patience_of(dimension: int, patterns: bool) -> int:
    """How often to add brackets: rare patterns are a matter of narrow, hence small, networks."""
    return PATIENCE if patterns and dimension <= 500 else 0


def _rank(rows: Sequence[np.ndarray]) -> int:
    if not rows:
        return 0
    stacked = np.concatenate(rows)
    height, width = stacked.shape
    return int(flint.nmod_mat(height, width, stacked.ravel().tolist(), jets.MODULUS).rank())
