"""The laws that theory knows, as polynomials with names: neuron, matrix, shift and "moves only along" laws.

Every builder is a generator of candidate laws for one system; nothing here is believed before it is proved
(:mod:`lawful.finder.proof`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import flint
import numpy as np

from lawful.finder.polynomials import Polynomial, add_into
from lawful.finder.symbols import Symbols

HALF: Final = Fraction(1, 2)


@dataclass(frozen=True)
class Candidate:
    """A polynomial that should be constant along the flow.

    Attributes:
        kind: the family of the law: "neuron", "matrix", "shift", "range", "frozen", "difference".
        name: what a reader calls it.
        formula: in the letters of the theory.
        polynomial: in the variables of :class:`~lawful.finder.symbols.Symbols`.
        numeric: the coefficients use the given numbers of B, and so must the proof.
        to_output: the proof needs the layers up to the output.
        orbit: laws with the same orbit are renamings of each other (permuted hidden units): one proof serves all.
    """

    kind: str
    name: str
    formula: str
    polynomial: Polynomial
    numeric: bool = False
    to_output: bool = False
    orbit: tuple[Hashable, ...] | None = None


def _put(h: Polynomial, coefficient: int | Fraction, *variables: Any) -> None:
    if coefficient:
        add_into(h, {tuple(sorted(int(v) for v in variables)): coefficient})


def neuron_and_matrix(symbols: Symbols) -> Iterator[Candidate]:
    """½‖W_i[j]‖² + ½b_i[j]² - kΨ_j(W_{i+1}); for linear layers all entries of the matrix W_iW_iᵀ + b_ib_iᵀ - ….

    Not for sign feedback alignment (no potential) nor, before the last hidden layer, for direct rules.
    """
    system = symbols.system
    arch, family = system.arch, system.family
    degree = arch.sigma.degree
    if degree is None or family.route in ("signs", "direct-target"):
        return
    for i in range(arch.depth - 1):
        if family.direct and i < arch.depth - 2:
            continue
        for j in range(arch.widths[i + 1]):
            for k in range(j, arch.widths[i + 1] if system.acts_linearly(i) else j + 1):
                yield _pair_law(symbols, i, j, k, degree)


def _pair_law(symbols: Symbols, i: int, j: int, k: int, degree: int) -> Candidate:
    system = symbols.system
    arch, family = system.arch, system.family
    weight, bias, following = arch.weight_at[i], arch.bias_at[i], arch.weight_at[i + 1]
    h: Polynomial = {}
    size: int | Fraction = HALF if j == k else 1
    for m in range(arch.widths[i]):
        _put(h, size, weight[j, m], weight[k, m])
    if bias is not None:
        _put(h, size, bias[j], bias[k])
    for o in range(arch.widths[i + 2]):
        if family.source == "weight":
            _put(h, -size * degree, following[o, j], following[o, k])
        elif family.source == "moving":
            B = symbols.moving_at[i + 1]
            _put(h, -size * degree, B[o, j], B[o, k])
        else:
            B = symbols.feedback_at[i + 1]
            _put(h, -size * degree, B[o, j], following[o, k])
            _put(h, -size * degree, B[o, k], following[o, j])
    if j == k:
        name, text = f"neuron law of layer {i + 1}, neuron {j + 1}", _neuron_formula(symbols, i, j, degree)
        kind = "neuron"
    else:
        name, text = f"matrix law of layer {i + 1}, entry ({j + 1}, {k + 1})", _matrix_formula(symbols, i, j, k)
        kind = "matrix"
    shape = (
        arch.widths[i],
        arch.widths[i + 1 : i + 3],
        bias is None,
        arch.activation,
        family.name,
        i == arch.depth - 2,
    )
    return Candidate(kind, name, text, h, orbit=("pair", j == k, shape, system.softmax))


def _neuron_formula(symbols: Symbols, i: int, j: int, degree: int) -> str:
    family, n = symbols.system.family, i + 1
    bias = f" + ½b{n}[{j + 1}]²" if symbols.system.arch.biases[i] else ""
    k = "" if degree == 1 else f"{degree}·"
    letter = f"D{n}" if family.direct else f"B{n + 1}"
    potential = {
        "weight": f"{degree}·½‖W{n + 1}[:,{j + 1}]‖²" if degree != 1 else f"½‖W{n + 1}[:,{j + 1}]‖²",
        "moving": f"{k}½‖B{n + 1}[:,{j + 1}]‖²",
        "fixed": f"{k}⟨{letter}[:,{j + 1}], W{n + 1}[:,{j + 1}]⟩",
        "sign": f"{k}{'' if family.name == 'usf' else f'⟨M{n + 1}[:,{j + 1}], '}"
        + (f"‖W{n + 1}[:,{j + 1}]‖₁" if family.name == "usf" else f"|W{n + 1}[:,{j + 1}]|⟩"),
    }[family.source]
    return f"½‖W{n}[{j + 1},:]‖²{bias} − {potential}"


def _matrix_formula(symbols: Symbols, i: int, j: int, k: int) -> str:
    family, n = symbols.system.family, i + 1
    bias = f" + b{n} b{n}ᵀ" if symbols.system.arch.biases[i] else ""
    B = {"sign": f"S{n + 1}"}.get(family.source, f"D{n}" if family.direct else f"B{n + 1}")
    potential = {
        "weight": f"W{n + 1}ᵀW{n + 1}",
        "moving": f"B{n + 1}ᵀB{n + 1}",
    }.get(family.source, f"({B}ᵀW{n + 1} + W{n + 1}ᵀ{B})")
    return f"(W{n}W{n}ᵀ{bias} − {potential})[{j + 1},{k + 1}]"


def bias_shift(symbols: Symbols) -> Iterator[Candidate]:
    """b_i - B_{i+1}ᵀ b_{i+1} of linear nets with constant B; under direct rules b_i - D_iᵀ b_L."""
    system = symbols.system
    arch, family = system.arch, system.family
    if family.source not in ("fixed", "sign") or family.route in ("signs", "direct-target"):
        return
    for i in range(arch.depth - 1):
        if not system.acts_linearly(i) or not (family.direct or system.acts_linearly(i + 1)):
            continue
        reader = arch.depth - 1 if family.direct else i + 1
        lower, upper = arch.bias_at[i], arch.bias_at[reader]
        if lower is None or upper is None:
            continue
        B, letter = symbols.feedback_at[i + 1], f"D{i + 1}" if family.direct else f"B{i + 2}"
        for j in range(arch.widths[i + 1]):
            h: Polynomial = {}
            _put(h, 1, lower[j])
            for o, at in enumerate(upper):
                _put(h, -1, B[o, j], at)
            name = f"bias law of layer {i + 1}, neuron {j + 1}"
            text = f"b{i + 1}[{j + 1}] − ⟨{letter}[:,{j + 1}], b{reader + 1}⟩"
            yield Candidate("shift", name, text, h, orbit=("shift", i))


def feedback_difference(symbols: Symbols) -> Iterator[Candidate]:
    """W_i - B_i of Kolen-Pollack: both move by the same step."""
    arch = symbols.system.arch
    for i, B in enumerate(symbols.moving_at):
        for (j, k), at in np.ndenumerate(B):
            h: Polynomial = {}
            _put(h, 1, arch.weight_at[i][j, k])
            _put(h, -1, at)
            name = f"W{i + 1} and B{i + 1} move alike, entry ({j + 1}, {k + 1})"
            text = f"W{i + 1}[{j + 1},{k + 1}] − B{i + 1}[{j + 1},{k + 1}]"
            yield Candidate("difference", name, text, h, orbit=("difference", i))


def error_map(symbols: Symbols, i: int) -> flint.fmpz_mat | None:
    """C_i (n_i, m) with δ_i = e C_iᵀ when that is so whatever θ and the data are, over independent error signals.

    Linear layers: C_L = 1 (with softmax the m - 1 differences), C_i = B_{i+1}ᵀ C_{i+1}, direct rules D_iᵀ. None where
    δ_i depends on θ or on activation patterns.
    """
    system = symbols.system
    arch, family = system.arch, system.family
    last = arch.depth - 1
    C = _error_space(symbols)
    if i == last:
        return C
    linear = range(i, i + 1) if family.direct else range(i, last)
    if family.source not in ("fixed", "sign") or family.route == "signs" or not all(map(system.acts_linearly, linear)):
        return None
    if family.route == "direct-target":
        return _integer(system.scaled[i + 1].T)
    if family.direct:
        return _integer(system.scaled[i + 1].T) * C
    for layer in reversed(range(i, last)):
        C = _integer(system.scaled[layer + 1].T) * C
    return C


def _error_space(symbols: Symbols) -> flint.fmpz_mat:
    """The identity, or for softmax the columns that span the error signals with sum zero."""
    free = np.eye(symbols.system.arch.widths[-1], dtype=int)
    if symbols.system.softmax:
        free = free[:, :-1].copy()
        free[-1, :] = -1
    return _integer(free)


def moves_along(symbols: Symbols) -> Iterator[Candidate]:
    """N W_i and N b_i with N C_i = 0: "W_i moves only along the feedback"; at a softmax output N is a row of ones."""
    arch = symbols.system.arch
    for i in range(arch.depth):
        C = error_map(symbols, i)
        if C is None:
            continue
        for r, row in enumerate(left_null_space(C)):
            along = "has constant column sums" if i == arch.depth - 1 else "moves only along the feedback"
            for k in range(arch.widths[i]):
                yield _combination(symbols, i, row, r, k, f"W{i + 1} {along}")
            if arch.biases[i]:
                yield _combination(symbols, i, row, r, None, f"b{i + 1} {along}")


def _combination(symbols: Symbols, i: int, row: list[int], r: int, k: int | None, name: str) -> Candidate:
    arch, h = symbols.system.arch, {}
    bias = arch.bias_at[i]
    for j, coefficient in enumerate(row):
        if k is not None:
            _put(h, coefficient, arch.weight_at[i][j, k])
        elif bias is not None:
            _put(h, coefficient, bias[j])
    text = f"N{i + 1}[{r + 1},:]·" + (f"b{i + 1}" if k is None else f"W{i + 1}[:,{k + 1}]")
    where = f"row {r + 1}" if k is None else f"row {r + 1}, column {k + 1}"
    orbit = ("range", i, r, k is None)
    return Candidate("range", f"{name}, {where}", f"{text} with N{i + 1} = {row}", h, True, True, orbit)


def direct_pairs(symbols: Symbols) -> Iterator[Candidate]:
    """Laws of hidden layer i under direct feedback when layer i + 1, hidden too, acts linearly.

    With rows q, k such that q D_iᵀ = k D_{i+1}ᵀ: (qW_i)·(q'W_i) + (qb_i)(q'b_i) - k W_{i+1} q' - k' W_{i+1} q and
    q b_i - k b_{i+1}. All q occur when D_{i+1} has full row rank; otherwise those that kill D_iᵀ ker D_{i+1}ᵀ. If
    layer i has masks, only q = one neuron, with itself.
    """
    system = symbols.system
    arch = system.arch
    if not system.family.direct or arch.sigma.degree != 1:
        return
    for i in range(arch.depth - 2):
        if not system.acts_linearly(i + 1):
            continue
        above, linear = _direct_map(symbols, i + 1), system.acts_linearly(i)
        pairs = _matching_rows(_direct_map(symbols, i), above, single=not linear)
        for r, (q, k) in enumerate(pairs):
            learned = arch.biases[-1] and system.family.route == "direct-error"
            if linear and arch.biases[i] and arch.biases[i + 1] and not learned:
                yield _direct_bias(symbols, i, q, k, r)
            for s in range(r, len(pairs) if linear else r + 1):
                yield _direct_pair(symbols, i, (q, k), pairs[s], (r, s))


def _direct_map(symbols: Symbols, i: int) -> flint.fmpz_mat:
    """D_iᵀ restricted to the error signals there are."""
    system = symbols.system
    D = _integer(system.scaled[i + 1].T)
    return D if system.family.route == "direct-target" else D * _error_space(symbols)


def _matching_rows(below: flint.fmpz_mat, above: flint.fmpz_mat, *, single: bool) -> list[tuple[list[int], list[int]]]:
    """A basis of the rows q for which some k has q · below = k · above, each with such a k, in whole numbers.

    With ``single`` only q that are multiples of unit vectors.
    """
    if single:
        rows = [[int(x) for x in row] for row in below.tolist()]
        pairs = []
        for j, row in enumerate(rows):
            found = _matching_rows(flint.fmpz_mat([row]), above, single=False)
            pairs += [([q[0] * (j == other) for other in range(len(rows))], k) for q, k in found]
        return pairs
    stacked = flint.fmpz_mat([list(row) for row in below.tolist()] + [[-x for x in row] for row in above.tolist()])
    n, pairs, rows = below.nrows(), [], []
    for row in left_null_space(stacked):
        q, k = row[:n], row[n:]
        if flint.fmpz_mat([*rows, q]).rank() > len(rows):
            rows.append(q)
            pairs.append((q, k))
    return pairs


def _direct_pair(
    symbols: Symbols,
    i: int,
    first: tuple[list[int], list[int]],
    second: tuple[list[int], list[int]],
    where: tuple[int, int],
) -> Candidate:
    arch = symbols.system.arch
    weight, bias, following = arch.weight_at[i], arch.bias_at[i], arch.weight_at[i + 1]
    h: Polynomial = {}
    for a, x in enumerate(first[0]):
        for b, y in enumerate(second[0]):
            if x * y:
                for m in range(arch.widths[i]):
                    _put(h, x * y, weight[a, m], weight[b, m])
                if bias is not None:
                    _put(h, x * y, bias[a], bias[b])
    for q, k in ((first[0], second[1]), (second[0], first[1])):
        for b, y in enumerate(q):
            for o, z in enumerate(k):
                _put(h, -y * z, following[o, b])
    r, s = where
    name = f"direct matrix law of layer {i + 1}, entry ({r + 1}, {s + 1})"
    text = f"(Q(W{i + 1}W{i + 1}ᵀ)Qᵀ − (K W{i + 2} Qᵀ + its transpose))[{r + 1},{s + 1}], Q D{i + 1}ᵀ = K D{i + 2}ᵀ"
    return Candidate("direct matrix", name, text, h, numeric=True, to_output=True)


def _direct_bias(symbols: Symbols, i: int, q: list[int], k: list[int], r: int) -> Candidate:
    lower, upper = symbols.system.arch.bias_at[i], symbols.system.arch.bias_at[i + 1]
    assert lower is not None and upper is not None
    h: Polynomial = {}
    for j, x in enumerate(q):
        _put(h, x, lower[j])
    for o, x in enumerate(k):
        _put(h, -x, upper[o])
    name, text = f"direct bias law of layer {i + 1}, row {r + 1}", f"(Q b{i + 1} − K b{i + 2})[{r + 1}]"
    return Candidate("shift", name, text, h, numeric=True, to_output=True)


def frozen(symbols: Symbols) -> Iterator[Candidate]:
    """Every weight and bias of a hidden neuron that no error reaches (a zero column of B)."""
    system = symbols.system
    arch, family = system.arch, system.family
    if family.source != "fixed" or arch.sigma.linear or family.route == "signs":
        return
    reached = np.ones(arch.widths[-1], dtype=bool)
    for i in reversed(range(arch.depth - 1)):
        B = system.exact[i + 1]
        reached = np.any((B if family.direct else B[reached]).astype(float) != 0, axis=0)
        for j in np.flatnonzero(~reached):
            bias = arch.bias_at[i]
            for at in [*arch.weight_at[i][j], *([] if bias is None else [bias[j]])]:
                text = symbols.names[int(at)]
                name = f"{text} is frozen: no error reaches neuron {j + 1} of layer {i + 1}"
                yield Candidate("frozen", name, text, {(int(at),): 1}, numeric=True, to_output=True)


def constant_off_the_inputs(symbols: Symbols) -> Iterator[Candidate]:
    """On a data set: (W_1, b_1) z with x·z = 0 for every (x, 1) in it never moves, whatever the rule."""
    system, arch = symbols.system, symbols.system.arch
    if system.inputs is None:
        return
    biased = arch.bias_at[0] is not None
    common = math.lcm(*(Fraction(v).denominator for v in system.inputs.ravel()))
    columns = np.concatenate([system.inputs * common, np.full((len(system.inputs), int(biased)), common)], axis=1)
    for r, row in enumerate(left_null_space(_integer(columns.T))):
        for j in range(arch.widths[1]):
            h: Polynomial = {}
            for k in range(arch.widths[0]):
                _put(h, row[k], arch.weight_at[0][j, k])
            if biased:
                _put(h, row[-1], arch.bias_at[0][j])  # pyright: ignore[reportOptionalSubscript]
            name = f"layer 1 is constant off the inputs, neuron {j + 1}, direction {r + 1}"
            letters = "(W1, b1)" if biased else "W1"
            text = f"({letters} z)[{j + 1}] with z = {row}"
            yield Candidate("data", name, text, h, numeric=True, to_output=True, orbit=("data", r))


BUILDERS: Final[tuple[Callable[[Symbols], Iterator[Candidate]], ...]] = (
    neuron_and_matrix,
    bias_shift,
    feedback_difference,
    moves_along,
    direct_pairs,
    frozen,
    constant_off_the_inputs,
)
"""Tried in this order; later laws count only when independent of earlier ones."""


def _integer(a: np.ndarray) -> flint.fmpz_mat:
    rows, columns = a.shape
    return flint.fmpz_mat(rows, columns, [int(x) for x in a.ravel()])


def left_null_space(C: flint.fmpz_mat) -> list[list[int]]:
    """A basis of the rows N with N C = 0, in whole numbers without common factor."""
    null, rank = C.transpose().nullspace()
    rows = []
    for column in range(rank):
        row = [int(null[j, column]) for j in range(C.nrows())]
        common = int(np.gcd.reduce(np.array(row, dtype=object)))
        rows.append([x // common for x in row])
    return rows
