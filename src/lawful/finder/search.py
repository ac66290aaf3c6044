"""Which quantities does a rule conserve, and are these all? Counting from above, proving from below."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch

from lawful.errors import SettingError
from lawful.finder import residues as ff
from lawful.finder.architectures import (
    architecture_of,
    is_chain,
    linear_layers,
    reads_as_vectors,
    refuse_masks_that_matter,
)
from lawful.finder.candidates import Candidate
from lawful.finder.circuits.circuit import Circuit
from lawful.finder.circuits.modules import checked_shape, circuit_of
from lawful.finder.circuits.search import CircuitSearch, find_circuit_laws
from lawful.finder.contexts import contexts_of, steady_context
from lawful.finder.families import STRUCTURED, family_of
from lawful.finder.fields import B_RANGE, System, draw_point
from lawful.finder.found import FoundLaw, LawSearch
from lawful.finder.geometry import decay_rates, drift, in_geometry
from lawful.finder.lie_algebra import LieRank, lie_rank
from lawful.finder.named_laws import BUILDERS
from lawful.finder.nullspace import num_monomials, polynomial_laws
from lawful.finder.plain_modules import refuse_hidden_work
from lawful.finder.polynomials import Polynomial, written
from lawful.finder.problem import exact_inputs, generic_feedback, given_feedback, signed_feedback
from lawful.finder.proof import Context, rate_of
from lawful.finder.residues import PRIME
from lawful.finder.rule_objects import (
    named_or_object,
    refuse_structure,
    refuse_what_would_be_ignored,
    structured_feedback,
    weight_names,
)
from lawful.finder.symbols import Symbols
from lawful.rules.base import Rule
from lawful.rules.direct_base import DirectRule

MAX_DIMENSION: Final = 8000
"""Largest state counted exactly: the echelon basis of D² residues, twice, stays below 2 GB."""

SEARCHED_BY_DEFAULT: Final = 700
"""The polynomial search runs on its own up to this many monomials (about a second)."""

HIGHEST: Final = 20
"""The highest degree that can be asked for."""

DEEPEST: Final = 4
"""The highest degree it tries on its own."""

Progress = Callable[[float, str], None]
_PROVED: dict[Hashable, bool] = {}


def find_laws(
    widths_or_module: Sequence[int] | torch.nn.Module | Circuit,
    *,
    rule: Rule | DirectRule | str,
    activation: str | None = None,
    bias: bool = False,
    degree: int = 2,
    B: str | Sequence[Any] | Mapping[str, Any] = "generic",
    seed: int = 0,
    output: str = "free",
    inputs: Any = None,
    geometry: str = "plain",
    decay: Sequence[int] | None = None,
    search: bool | None = None,
    num_points: int = 2,
    shape: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> LawSearch | CircuitSearch:
    """Find the independent laws of a rule on a network, and certify that there are no others.

    From above: D - rank of the Lie algebra of the update fields, exact modulo a prime at a random point. From below:
    named laws and polynomials found by an exact null space, each expanded to zero symbolically, with independent
    gradients. When both agree the count is a theorem.

    Args:
        widths_or_module: n_0, …, n_L; or an ``nn.Sequential`` of Linear, Conv1d, Conv2d, AvgPool, Flatten, LayerNorm,
            RMSNorm and activations; or a :class:`~lawful.finder.circuits.circuit.Circuit`.
        rule: a rule object, its registry name, or both as in "low-rank-fa:rank=1". Low-rank, sparse and shared
            direct feedback is drawn with its structure.
        activation: "linear", "relu", "leaky_relu", "square", "squared_relu", "tanh" or "sigmoid" (default "relu").
        bias: biases in every layer, the output included.
        degree: of the polynomial search.
        B: "generic", or B_2 … B_L (direct rules: D_1 … D_{L-1}); floats count as the dyadic rationals they are.
            For networks that are no plain MLPs a mapping from the weights' names, as ``attachment.feedback``.
        seed: of every random draw.
        output: "free", or "softmax" when error signals sum to zero, for each token apart where there are several.
        inputs: laws that hold for these inputs (n, n_0) only; ReLU patterns are those of one random point.
        geometry: "plain", "decay" or "momentum": the optimiser's flow; laws may then depend on time through e^t.
        decay: relative decay rates of the layers in whole numbers, for geometry "decay" (default all 1): with
            (1, 2, 4, …) feedback alignment keeps its neuron laws.
        search: run the polynomial search; by default only where the named laws leave a gap and the net is small.
        num_points: random points tried while bound and count differ.
        shape: of one input of a module without the batch, where it does not start with Linear: (channels, length).
        progress: called with a fraction and a text.

    Raises:
        SettingError: a size, name or shape that is not allowed, or a state too large for exact search.

    >>> from lawful.rules.feedback_alignment import FeedbackAlignment
    >>> found = find_laws([2, 3, 1], rule=FeedbackAlignment(), activation="linear")
    >>> found.count, found.certified
    (7, True)
    """
    started = time.perf_counter()
    made, generic = named_or_object(rule), isinstance(B, str) and B == "generic"
    for name, number, least in (("degree", degree, 1), ("seed", seed, 0), ("num_points", num_points, 1)):
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < least:
            raise SettingError(f"find_laws: {name} must be a whole number >= {least}; got {number!r}")
    degree, seed = int(degree), int(seed)
    if degree > HIGHEST:
        raise SettingError(f"find_laws: degree must be at most {HIGHEST}; got {degree}")
    if not (search is None or isinstance(search, bool)):
        raise SettingError(f"find_laws: search must be True, False or None; got {search!r}")
    if output not in ("free", "softmax"):
        raise SettingError(f"find_laws: output must be free or softmax; got {output!r}")
    source = widths_or_module
    if isinstance(source, torch.nn.Module):
        refuse_hidden_work(source)
        sizes = None if shape is None else checked_shape(shape)
        source = source if is_chain(source) and reads_as_vectors(source, sizes) else circuit_of(source, sizes)
        shape = None
    if shape is not None:
        raise SettingError(f"find_laws: shape={shape!r} is an option of modules; widths and circuits have their own")
    if isinstance(source, Circuit):
        if activation is not None or bias or inputs is not None or geometry != "plain" or decay is not None:
            raise SettingError("find_laws: activation, bias, inputs, geometry and decay are options of plain MLPs only")
        refuse_what_would_be_ignored(made, generic, geometry, biased=False, equal=True)
        refuse_structure(made, generic)
        named: Any = B
        return find_circuit_laws(source, rule=made, B=named, degree=degree, seed=seed, output=output, search=search,
                                 num_points=num_points, progress=progress)  # fmt: skip
    if isinstance(B, Mapping):
        raise SettingError("find_laws: for a plain MLP B is a list of arrays, in the order of the layers")
    arch = architecture_of(source, activation, bias)
    family = family_of(made)
    if output == "softmax" and arch.widths[-1] == 1:
        raise SettingError("find_laws: a softmax of one output sends no error (Σe = 0); take output='free'")
    if inputs is not None and arch.sigma.degree is None:
        raise SettingError(f"find_laws: inputs are not counted with {arch.activation}, whose values count as free data")
    rates = decay_rates(geometry, decay, arch.depth)
    if family.route == "signs" and arch.sigma.degree == 2 and arch.depth > 2:
        raise SettingError(
            f"find_laws: {family.name} sends the signs of slopes that {arch.activation} makes depend on the size of h; "
            "take relu, leaky_relu or linear, or two layers"
        )
    _check_size(System(arch, family, (), geometry=geometry))
    refuse_what_would_be_ignored(made, generic, geometry, biased=any(arch.biases), equal=len(set(rates)) < 2)
    structured = not isinstance(made, str) and made.name in STRUCTURED
    numeric = not generic or structured or family.source != "fixed" or family.route == "signs"
    none = (np.zeros((0, 0), dtype=object),)
    scale = getattr(made, "scale", None) if family.name == "usf" else None
    system = System(arch, family, none, output == "softmax", exact_inputs(arch, inputs), geometry, rates, scale)
    refuse_masks_that_matter(source, system.masks_are_free, _data_of(system))
    if generic:
        system = _with_generic_feedback(system, made, weight_names(source, arch), seed, progress)
    else:
        system = replace(system, exact=given_feedback(arch, family, B))
    own = _orthant_of(source, system)
    point = draw_point(system, np.random.default_rng(seed), own)
    local = replace(system, exact=signed_feedback(system, point))
    symbols = Symbols(local)
    interrupted, ranks, laws, proved = False, list[LieRank](), list[tuple[FoundLaw, Candidate]](), list[Candidate]()
    try:
        for candidate in _named(symbols, progress):
            proved.append(candidate)
        laws = _independent(symbols, point, local, proved)
        ranks.append(_rank(system, seed, len(laws), progress, near=own))
        for power in _degrees(search, symbols, degree, numeric=numeric):
            if ranks[0].interrupted or (search is None and len(laws) == ranks[0].bound):
                break
            proved = _candidates_of(laws)
            found = polynomial_laws(symbols, point, power, numeric=numeric, seed=seed, progress=progress)
            for candidate in _new(symbols, found, point, numeric):
                proved.append(candidate)
            laws = _independent(symbols, point, local, proved)
        tries = 1 if inputs is not None and arch.sigma.slopes is not None else num_points
        while len(ranks) < tries and min(r.bound for r in ranks) > len(laws) and all(r.complete for r in ranks):
            more = {"near": point, "max_level": len(ranks[0].levels)}
            ranks.append(_rank(system, seed + len(ranks), len(laws), progress, **more))
    except KeyboardInterrupt:
        interrupted, laws = True, _independent(symbols, point, local, proved)
        ranks = ranks or [LieRank(system.dimension, point=point, seed=seed)]  # where the laws hold
    bound = min((r.bound for r in ranks), default=system.dimension)
    interrupted |= any(r.interrupted for r in ranks)
    if len(laws) > bound:
        raise RuntimeError(f"find_laws: {len(laws)} laws proved where at most {bound} can be; please report this")
    certified = len(laws) == bound and arch.sigma.degree is not None
    return LawSearch(
        len(laws), bound, certified, tuple(law for law, _ in laws), arch, family.name, system.dimension, tuple(ranks),
        local, time.perf_counter() - started, interrupted,
    )  # fmt: skip


def _with_generic_feedback(
    system: System, rule: Any, names: Sequence[str], seed: int, progress: Progress | None
) -> System:
    """Small whole numbers for B, drawn until the Lie rank is that of random residues: generic ones.

    Ranks are compared where a layer acts linearly. Elsewhere laws are polynomials in B, which hold for every B, so
    that a count that is certified is that of generic B. Sign rules have no generic B.
    """
    arch, family, rng = system.arch, system.family, np.random.default_rng([seed, 1])

    def drawn(largest: int) -> tuple[np.ndarray, ...]:
        block = structured_feedback(rule, arch, names, rng, largest)
        return generic_feedback(arch, family, rng, largest) if block is None else block

    system = replace(system, exact=drawn(B_RANGE))
    linear = any(system.acts_linearly(i) for i in range(arch.depth - 1))
    if family.source != "fixed" or family.route == "signs" or not linear:
        return system
    most = _uninterrupted(replace(system, exact=drawn(PRIME // 2)), seed, progress)
    while _uninterrupted(system, seed, progress) < most:
        system = replace(system, exact=drawn(B_RANGE))
    return system


def _data_of(system: System) -> tuple[bool, bool]:
    """Whether inputs, and errors at the output, may be masked like any other data."""
    return system.inputs is None, not system.softmax and system.family.route != "signs"


def _orthant_of(source: Any, system: System) -> list[np.ndarray] | None:
    """For sign rules the weights of a module, whose signs its laws belong to; None for widths and other rules."""
    if not isinstance(source, torch.nn.Module) or system.family.orthant != "any":
        return None
    parameters = (p for leaf in linear_layers(source) for p in (leaf.weight, leaf.bias) if p is not None)
    blocks = [p.detach().cpu().double().numpy() for p in parameters]
    return blocks + [np.zeros(shape) for shape in system.shapes()[len(blocks) :]]


def _uninterrupted(system: System, seed: int, progress: Progress | None) -> int:
    told = None if progress is None else lambda fraction, _: progress(fraction, "drawing a generic B")
    found = _rank(system, seed, 0, told)
    if found.interrupted:
        raise KeyboardInterrupt  # there is no B yet, so nothing to keep
    return found.rank


_Found = list[tuple[FoundLaw, Candidate]]


def _rank(system: System, seed: int, known: int, progress: Progress | None, **options: Any) -> LieRank:
    return lie_rank(system, seed=seed, known=known, progress=progress, **options)


def _named(symbols: Symbols, progress: Progress | None) -> Iterator[Candidate]:
    """The named candidates that expand to zero."""
    proved: dict[Hashable, bool] = {}
    tried = 0
    for build in BUILDERS:
        for candidate in in_geometry(symbols, build(symbols)):
            if progress is not None and tried % 64 == 0:
                progress(0.0, f"proving {candidate.name}")
            tried += 1
            if is_law(symbols, candidate, proved):
                yield candidate


def is_law(symbols: Symbols, candidate: Candidate, proved: dict[Hashable, bool] | None = None) -> bool:
    """True when ∇h · F expands to zero; one representative is expanded for laws that are renamings of each other."""
    memo = _PROVED if candidate.orbit is not None and candidate.orbit[0] == "pair" else (proved or {})
    if candidate.orbit is not None and candidate.orbit in memo:
        return memo[candidate.orbit]
    contexts: tuple[Context, ...] = (Context(),)
    if candidate.kind == "data" and symbols.system.inputs is not None:
        contexts = tuple(Context(x=tuple(x)) for x in symbols.system.inputs)
    steady = steady_context(symbols.system) if candidate.local else None
    contexts = contexts if steady is None else (steady,)
    rates = rate_of(
        symbols, candidate.polynomial, numeric=candidate.numeric, to_output=candidate.to_output, contexts=contexts,
        drift=drift,
    )  # fmt: skip
    answer = not any(rates)
    if candidate.orbit is not None:
        (memo if candidate.orbit[0] == "pair" else proved if proved is not None else {})[candidate.orbit] = answer
    return answer


def _new(symbols: Symbols, found: list[Polynomial], point: list[np.ndarray], numeric: bool) -> Iterator[Candidate]:
    """Searched polynomials that are proved over every case of the data."""
    contexts = contexts_of(symbols.system, point)
    number = 0
    for h in found:
        if not any(rate_of(symbols, h, numeric=numeric, to_output=True, contexts=contexts, drift=drift)):
            number += 1
            text = written(h, symbols.names.__getitem__)
            yield Candidate("polynomial", f"polynomial law {number}", text, h, numeric, True)


def _candidates_of(laws: _Found) -> list[Candidate]:
    return [candidate for _, candidate in laws]


def _independent(symbols: Symbols, point: list[np.ndarray], system: System, candidates: list[Candidate]) -> _Found:
    """Those whose gradients are independent modulo p at the point, in order; that is a proof of independence."""
    if not candidates:
        return []
    values = symbols.values(point, system.B)
    echelon = ff.Echelon(system.dimension)
    kept: _Found = []
    for start in range(0, len(candidates), 1024):
        part = candidates[start : start + 1024]
        rows = np.stack([gradient_at(symbols, c.polynomial, values) for c in part])
        kept += [(_law(symbols, part[index]), part[index]) for index in echelon.add(rows)]
    return kept


def gradient_at(symbols: Symbols, h: Polynomial, values: np.ndarray) -> np.ndarray:
    """∇h modulo p at a point given by the values of all variables."""
    row = [0] * symbols.system.dimension
    dimension = len(row)
    for monomial, coefficient in h.items():
        c = coefficient if isinstance(coefficient, int) else int(ff.residue(coefficient))
        for position, number in enumerate(monomial):
            if number < dimension:
                term = c
                for other, factor in enumerate(monomial):
                    if other != position:
                        term = term * int(values[factor]) % ff.PRIME
                row[number] += term
    return ff.reduce(np.array([x % ff.PRIME for x in row], dtype=np.float64))


def _law(symbols: Symbols, candidate: Candidate) -> FoundLaw:
    text = written(candidate.polynomial, symbols.names.__getitem__)
    return FoundLaw(
        candidate.name, candidate.kind, candidate.formula, text, candidate.polynomial, symbols, candidate.numeric
    )


def _degrees(search: bool | None, symbols: Symbols, degree: int, *, numeric: bool) -> list[int]:
    """The degrees searched: the one asked for; by default the largest up to it that is quick, and quick ones above."""
    if search is not None:
        return [degree] * search
    quick = [d for d in range(1, DEEPEST + 1) if num_monomials(symbols, d, numeric=numeric) <= SEARCHED_BY_DEFAULT]
    return [max([d for d in quick if d <= degree], default=0), *(d for d in quick if d > degree)] if quick else []


def predicted_seconds(dimension: int) -> float:
    """Measured on two cores: 8 to 12 seconds at D = 5000, growing with D³."""
    return 0.02 + 12.0 * (dimension / 5000) ** 3


def _check_size(system: System) -> None:
    """The state must fit into memory.

    Raises:
        SettingError: too large; the message names clipped widths that fit, and their time.
    """
    if system.dimension <= MAX_DIMENSION:
        return
    cap, fits = MAX_DIMENSION, system
    while cap > 1 and fits.dimension > MAX_DIMENSION:
        cap -= max(1, cap // 50)
        fits = replace(system, arch=replace(system.arch, widths=tuple(min(n, cap) for n in system.arch.widths)))
    example = ""
    if fits.dimension <= MAX_DIMENSION:
        seconds = predicted_seconds(fits.dimension)
        example = f"; widths {' '.join(map(str, fits.arch.widths))} would work, in about {seconds:.0f} s"
    raise SettingError(
        f"find_laws: the state has {system.dimension} coordinates, exact search works up to {MAX_DIMENSION}{example}"
    )
