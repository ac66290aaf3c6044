"""Laws of circuits: counted from above by the Lie rank, found and proved from below.

From below, in this order: laws that are linear in the state and hold for every B, sums of the building blocks of
:mod:`lawful.finder.circuits.forms`, laws that are linear and hold for the given B, and where a gap is left all
polynomials of degree two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import combinations_with_replacement
from typing import Any, Final

import numpy as np

from lawful.errors import SettingError
from lawful.finder import residues as ff
from lawful.finder.circuits.circuit import Circuit
from lawful.finder.circuits.fields import B_RANGE, System, lie_rank, random_point
from lawful.finder.circuits.forms import Form, Part, forms, formula_of, kind_and_name, singles
from lawful.finder.circuits.free_data import refuse_dependent
from lawful.finder.circuits.nodes import Mask
from lawful.finder.circuits.nullspace import combinations
from lawful.finder.circuits.proof import is_law
from lawful.finder.families import Family, family_of
from lawful.finder.lie_algebra import LieRank
from lawful.finder.polynomials import Polynomial, add_into, gradient, written
from lawful.finder.problem import exact_array, number_array
from lawful.rules.base import Rule
from lawful.rules.direct_base import DirectRule

MAX_DIMENSION: Final = 400
"""Largest state of a circuit; every row of the table stays below 100."""

MAX_MONOMIALS: Final = 3000
"""The search of all polynomials of degree two has at most so many monomials."""

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class CircuitLaw:
    """One conserved quantity of a circuit, proved.

    Attributes:
        name: "query-key law of Q1 and K1, entry (1, 2)".
        kind: the family of laws it belongs to.
        formula: in the letters of the theory.
        polynomial: the same, written out.
        terms: in the symbols of the system.
        numeric: the coefficients contain the given numbers of B.
    """

    name: str
    kind: str
    formula: str
    polynomial: str
    terms: Polynomial = field(repr=False)
    system: System = field(repr=False)
    numeric: bool = field(repr=False)

    def value(self, parameters: Mapping[str, Any], feedback: Mapping[str, Any] | None = None) -> float:
        """The quantity at given parameters.

        Args:
            parameters: by name, as in ``module.state_dict()``.
            feedback: B by the name of its weight, as in ``attachment.feedback``; not needed by backpropagation nor
                where the law contains the given numbers of B.

        Raises:
            SettingError: something is missing, or of another shape; a law with the numbers of another B.
        """
        size, symbols = self.system.circuit.size, dict[int, float]()
        for shift, arrays in ((0, parameters), (size, feedback or {})):
            for m in self.system.circuit.maps:
                for name, at in ((m.weight, m.weight_at), (m.bias, m.bias_at)):
                    if at is not None and name in arrays:
                        values = number_array(arrays[name], f"law.value: {name}")
                        if values.shape != at.shape:
                            raise SettingError(f"law.value: {name} has shape {values.shape}; expected {at.shape}")
                        symbols |= {shift + int(v): float(x) for v, x in zip(at.ravel(), values.ravel(), strict=True)}
        self._refuse_other_feedback({number - size: b for number, b in symbols.items() if number >= size})
        missing = {number for monomial in self.terms for number in monomial} - set(symbols)
        if missing:
            raise SettingError(f"law.value: expected also {self.system.names[min(missing)]}")
        return float(sum(float(c) * float(np.prod([symbols[n] for n in m])) for m, c in self.terms.items()))

    def _refuse_other_feedback(self, given: Mapping[int, float]) -> None:
        """Where the coefficients contain numbers of B, they must be these."""
        if not self.numeric or self.system.family.source not in ("fixed", "sign"):
            return
        own, fed = self.system.exact, set(self.system.circuit.feedback.tolist())
        signs = self.system.family.name == "usf" and self.kind in ("range", "constant")  # whatever s is
        for v, b in given.items():
            if v in fed and float(own[v]) != (float(np.sign(b)) if signs else b):
                raise SettingError(
                    f"law.value: this law contains the numbers of the B it was found for, {float(own[v]):g} for "
                    f"{self.system.circuit.names[v]}; got {b:g}. Find the laws of your B: find_laws(…, B=feedback)"
                )


@dataclass(frozen=True)
class CircuitSearch:
    """What is known about the laws of a rule on a circuit; attributes as of :class:`lawful.finder.search.LawSearch`."""

    count: int
    bound: int
    certified: bool
    laws: tuple[CircuitLaw, ...]
    rule: str
    dimension: int
    ranks: tuple[LieRank, ...] = field(repr=False)
    system: System = field(repr=False)
    seconds: float = field(repr=False, compare=False)
    interrupted: bool = False

    @property
    def network(self) -> str:
        """The circuit's name."""
        return self.system.circuit.name

    @property
    def certificate(self) -> dict[str, Any]:
        """Everything needed to check the answer again, as JSON-ready data."""
        from lawful.finder.circuits.certificate import certificate_of

        return certificate_of(self)

    @property
    def gap(self) -> str:
        """Why this is no certificate, in one sentence; empty when it is one."""
        if self.certified:
            return ""
        if self.interrupted:
            return "the search was interrupted"
        return f"up to {self.bound - self.count} further laws are neither found nor excluded"

    def __str__(self) -> str:
        head = f"{self.rule}, {self.network}: "
        if self.certified:
            return head + f"{self.count} independent laws, and these are all (certified)"
        return head + f"at least {self.count}, at most {self.bound} independent laws"


def find_circuit_laws(
    circuit: Circuit,
    *,
    rule: Rule | DirectRule | str,
    B: str | Mapping[str, Any] = "generic",
    degree: int = 2,
    seed: int = 0,
    output: str = "free",
    search: bool | None = None,
    num_points: int = 2,
    progress: Progress | None = None,
) -> CircuitSearch:
    """The independent laws of a layerwise rule on a circuit; arguments as of :func:`lawful.finder.search.find_laws`.

    Args:
        circuit: the network.
        rule: a layerwise rule or its name; sign rules for circuits without ReLU.
        B: "generic", or whole numbers or fractions by the name of the weight.
        degree: of the polynomial search: 1, or 2.
        seed: of every random draw.
        output: "free", or "softmax" when the errors of the outputs sum to zero.
        search: search all polynomials; by default where the known kinds of laws leave a gap.
        num_points: random points tried while bound and count differ.
        progress: called with a fraction and a text.

    Raises:
        SettingError: a rule or size that is not counted; softmax weights or norms that depend on each other.
    """
    started = time.perf_counter()
    family = family_of(rule)
    _check(circuit, family, degree, output)
    system = _system(circuit, family, B, seed, softmax=output == "softmax")
    rng = np.random.default_rng([seed, 5])
    point = random_point(system, rng)
    interrupted, ranks, laws, found = False, list[LieRank](), list[CircuitLaw](), list[CircuitLaw]()

    def prove(basis: Sequence[Form], *, numeric: bool) -> None:
        nonlocal laws
        found.clear()
        for law in _laws(system, basis, rng, numeric=numeric, progress=progress):
            found.append(law)
        laws = _independent(system, point, [*laws, *_matrices_last(found)])

    try:
        for basis, numeric in ((singles(system), False), (forms(system), False), (singles(system), True)):
            prove(basis, numeric=numeric)
        ranks.append(lie_rank(system, seed=seed, known=len(laws), progress=progress))
        wanted = search or (search is None and len(laws) < ranks[0].bound)
        if degree == 2 and wanted and not ranks[0].interrupted:
            prove(_monomials(system, asked=bool(search)), numeric=True)
        while len(ranks) < num_points and min(r.bound for r in ranks) > len(laws) and ranks[-1].complete:
            ranks.append(lie_rank(system, seed=seed + len(ranks), known=len(laws), progress=progress))
    except KeyboardInterrupt:
        interrupted, laws = True, _independent(system, point, [*laws, *_matrices_last(found)])
    bound = min((r.bound for r in ranks), default=system.dimension)
    interrupted |= any(r.interrupted for r in ranks)
    return CircuitSearch(
        len(laws), bound, len(laws) == bound, tuple(laws), family.name, system.dimension, tuple(ranks), system,
        time.perf_counter() - started, interrupted,
    )  # fmt: skip


def _check(circuit: Circuit, family: Family, degree: int, output: str) -> None:
    if output not in ("free", "softmax"):
        raise SettingError(f"find_laws: output must be free or softmax; got {output!r}")
    if output == "softmax" and circuit.logits == 1:
        raise SettingError("find_laws: a softmax of one output sends no error (Σe = 0); take output='free'")
    if degree not in (1, 2):
        raise SettingError(f"find_laws: for circuits degree must be 1 or 2; got {degree!r}")
    if family.route != "layer":
        raise SettingError(
            f"find_laws: {family.name} is counted for plain fully connected networks only; of circuits bp, fa, rho-fa, "
            "kp are counted, and usf, frsf without ReLU"
        )
    if family.orthant and any(isinstance(node, Mask) for node in circuit.nodes):
        raise SettingError(
            f"find_laws: {family.name} keeps to an orthant of the weights, where not every activation pattern of a "
            "circuit is realised; of circuits with ReLU bp, fa, rho-fa and kp are counted"
        )
    if circuit.size + len(circuit.feedback) > MAX_DIMENSION:
        raise SettingError(
            f"find_laws: {circuit.name} has {circuit.size + len(circuit.feedback)} coordinates, weights and feedback "
            f"together; exact counting of circuits works up to {MAX_DIMENSION}"
        )
    refuse_dependent(circuit)


def _system(circuit: Circuit, family: Family, B: str | Mapping[str, Any], seed: int, *, softmax: bool) -> System:
    """With B as given, or small whole numbers drawn until the Lie rank is that of random residues: generic ones.

    Sign rules have no generic B: theirs is that of one random orthant.
    """
    rng = np.random.default_rng([seed, 1])
    if not isinstance(B, str):
        return System(circuit, family, _given_feedback(circuit, family, B), softmax)
    if B != "generic":
        raise SettingError(f"find_laws: B must be 'generic' or arrays by the name of the weight; got {B!r}")
    system = System(circuit, family, _small(circuit, 1 if family.name == "usf" else B_RANGE, rng), softmax)
    if family.source != "fixed":
        return system
    generic = _uninterrupted_rank(replace(system, exact=_small(circuit, ff.PRIME // 2, rng)), seed)
    while _uninterrupted_rank(system, seed) < generic:
        system = replace(system, exact=_small(circuit, B_RANGE, rng))
    return system


def _uninterrupted_rank(system: System, seed: int) -> int:
    found = lie_rank(system, seed=seed)
    if found.interrupted:
        raise KeyboardInterrupt  # there is no B yet, so nothing to keep
    return found.rank


def _small(circuit: Circuit, largest: int, rng: np.random.Generator) -> np.ndarray:
    drawn = rng.integers(1, largest + 1, circuit.size) * rng.choice([-1, 1], circuit.size)
    return np.array([Fraction(int(b)) for b in drawn], dtype=object)


def _given_feedback(circuit: Circuit, family: Family, B: Mapping[str, Any]) -> np.ndarray:
    """A number for each variable; 1 where there is no B."""
    if family.source != "fixed":
        raise SettingError(f"find_laws: rule {family.name} has no fixed B to give; leave B='generic'")
    if not isinstance(B, Mapping):
        raise SettingError(f"find_laws: B of {circuit.name} must be a mapping from the weights' names; got a list")
    fed = set(circuit.feedback.tolist())
    expected = {m.weight: m.weight_at for m in circuit.maps if int(m.weight_at.flat[0]) in fed}
    given = {name: number_array(block, f"find_laws: B of {name}") for name, block in B.items()}
    shapes = {name: at.shape for name, at in expected.items()}
    got = {name: block.shape for name, block in given.items()}
    if got != shapes:
        raise SettingError(f"find_laws: B must be arrays of shapes {shapes}; got {got}")
    exact = np.array([Fraction(1)] * circuit.size, dtype=object)
    for name, at in expected.items():
        exact[at.ravel()] = exact_array(given[name], f"B of {name}").ravel()
    return exact


def _monomials(system: System, *, asked: bool) -> list[Form]:
    """Every monomial of degree one and two in the state; none where there are too many and nobody asked for them."""
    state, names = [int(v) for v in system.state], system.names
    number = len(state) * (len(state) + 3) // 2
    if number > MAX_MONOMIALS and asked:
        raise SettingError(
            f"find_laws: the search has {number} monomials, at most {MAX_MONOMIALS} are searched exactly"
        )
    if number > MAX_MONOMIALS:
        return []
    owner = {int(form.j): form.map for form in singles(system)}
    return [
        Form(owner[m[0]], "monomial", m[0], m[-1], "·".join(names[v] for v in m), {m: 1})
        for degree in (1, 2)
        for m in combinations_with_replacement(state, degree)
    ]


def _laws(
    system: System, basis: Sequence[Form], rng: np.random.Generator, *, numeric: bool, progress: Progress | None
) -> Iterator[CircuitLaw]:
    """The combinations of these building blocks that are laws, proved and named."""
    number = 0
    for coefficients in combinations(system, [form.polynomial for form in basis], rng, numeric=numeric):
        parts: list[Part] = [(c, form) for c, form in zip(coefficients, basis, strict=True) if c]
        h: Polynomial = {}
        for c, form in parts:
            add_into(h, form.polynomial, c)
        if progress is not None:
            progress(0.0, f"expanding {formula_of(parts)[:60]}")
        if h and is_law(system, h, numeric=numeric):
            searched = parts[0][1].side == "monomial"
            number += 1
            kind, name = ("polynomial", f"polynomial law {number}") if searched else kind_and_name(parts)
            text = written(h, system.names.__getitem__)
            yield CircuitLaw(name, kind, formula_of(parts), text, h, system, numeric)


def _matrices_last(laws: Sequence[CircuitLaw]) -> list[CircuitLaw]:
    return sorted(laws, key=lambda law: law.kind == "matrix")


def _independent(system: System, point: np.ndarray, laws: Sequence[CircuitLaw]) -> list[CircuitLaw]:
    """Those whose gradients are independent modulo p at the point, in order."""
    if not laws:
        return []
    rows = np.stack([gradient_at(system, law.terms, point) for law in laws])
    return [laws[index] for index in ff.Echelon(system.dimension).add(rows)]


def gradient_at(system: System, h: Polynomial, values: np.ndarray) -> np.ndarray:
    """∇h by the coordinates of the state, modulo p."""
    place = {int(symbol): number for number, symbol in enumerate(system.state)}
    row = np.zeros(system.dimension)
    for number, slope in gradient(h, place.__contains__).items():
        total = 0
        for monomial, coefficient in slope.items():
            term = int(ff.residue(coefficient))
            for other in monomial:
                term = term * int(values[other]) % ff.PRIME
            total += term
        row[place[number]] = ff.residue(total)
    return row
