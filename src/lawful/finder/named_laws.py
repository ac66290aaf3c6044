"""The laws that theory knows, as polynomials with names: neuron, matrix, shift and "moves only along" laws.

Every builder is a generator of candidate laws for one system; nothing here is believed before it is proved
(:mod:`lawful.finder.proof`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from typing import Final

import numpy as np

from lawful.finder.angular_momentum import angular_momentum
from lawful.finder.candidates import Candidate, integer, left_null_space, put
from lawful.finder.contexts import steady_units
from lawful.finder.determinants import square_pair, within_reach
from lawful.finder.linear_laws import bias_combinations, direct_pairs, moves_along
from lawful.finder.polynomials import Polynomial
from lawful.finder.symbols import Symbols

HALF: Final = Fraction(1, 2)


def neuron_and_matrix(symbols: Symbols) -> Iterator[Candidate]:
    """½‖W_i[j]‖² + ½b_i[j]² - kΨ_j(W_{i+1}); for linear layers all entries of the matrix W_iW_iᵀ + b_ib_iᵀ - ….

    Not for sign feedback alignment (no potential) nor, before the last hidden layer, for direct rules.
    """
    system = symbols.system
    arch, family = system.arch, system.family
    degree = arch.sigma.degree
    if degree is None or family.route in ("signs", "direct-target"):
        return
    units = steady_units(system)
    for i in range(arch.depth - 1):
        if family.direct and i < arch.depth - 2:
            continue
        for j in range(arch.widths[i + 1]):
            for k in range(j, arch.widths[i + 1] if system.acts_linearly(i) else j + 1):
                yield _pair_law(symbols, i, j, k, degree)
        on = [j for j, state in enumerate(units[i]) if state == 1 and degree == 1]
        for j, k in combinations(on, 2):
            yield replace(_pair_law(symbols, i, j, k, degree), numeric=True, to_output=True, orbit=None, local=True)


def _pair_law(symbols: Symbols, i: int, j: int, k: int, degree: int) -> Candidate:
    system = symbols.system
    arch, family = system.arch, system.family
    weight, bias, following = arch.weight_at[i], arch.bias_at[i], arch.weight_at[i + 1]
    h: Polynomial = {}
    size: int | Fraction = HALF if j == k else 1
    for m in range(arch.widths[i]):
        put(h, size, weight[j, m], weight[k, m])
    if bias is not None:
        put(h, size, bias[j], bias[k])
    for o in range(arch.widths[i + 2]):
        if family.source == "weight":
            put(h, -size * degree, following[o, j], following[o, k])
        elif family.source == "moving":
            B = symbols.moving_at[i + 1]
            put(h, -size * degree, B[o, j], B[o, k])
        else:
            B = symbols.feedback_at[i + 1]
            put(h, -size * degree, B[o, j], following[o, k])
            put(h, -size * degree, B[o, k], following[o, j])
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
        "sign": f"{k}s{n + 1}·‖W{n + 1}[:,{j + 1}]‖₁"
        if family.name == "usf"
        else f"{k}⟨M{n + 1}[:,{j + 1}], |W{n + 1}[:,{j + 1}]|⟩",
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
            put(h, 1, lower[j])
            for o, at in enumerate(upper):
                put(h, -1, B[o, j], at)
            name = f"bias law of layer {i + 1}, neuron {j + 1}"
            text = f"b{i + 1}[{j + 1}] − ⟨{letter}[:,{j + 1}], b{reader + 1}⟩"
            yield Candidate("shift", name, text, h, orbit=("shift", i))


def feedback_difference(symbols: Symbols) -> Iterator[Candidate]:
    """W_i - B_i of Kolen-Pollack: both move by the same step."""
    arch = symbols.system.arch
    for i, B in enumerate(symbols.moving_at):
        for (j, k), at in np.ndenumerate(B):
            h: Polynomial = {}
            put(h, 1, arch.weight_at[i][j, k])
            put(h, -1, at)
            name = f"W{i + 1} and B{i + 1} move alike, entry ({j + 1}, {k + 1})"
            text = f"W{i + 1}[{j + 1},{k + 1}] − B{i + 1}[{j + 1},{k + 1}]"
            yield Candidate("difference", name, text, h, orbit=("difference", i))


def frozen(symbols: Symbols) -> Iterator[Candidate]:
    """Every weight and bias that nothing moves: no error reaches its neuron, or its input is off all over the orthant.

    No error reaches a neuron behind a zero column of B, nor one that is off or is read by such neurons only.
    """
    system = symbols.system
    arch, family = system.arch, system.family
    if family.source not in ("fixed", "sign") or arch.sigma.linear or family.route == "signs":
        return
    units = steady_units(system)
    local = any(state == 0 for layer in units for state in layer)
    reached = np.ones(arch.widths[-1], dtype=bool)
    for i in reversed(range(arch.depth)):
        if i < arch.depth - 1:
            B = system.exact[i + 1]
            reached = np.any((B if family.direct else B[reached]).astype(float) != 0, axis=0)
            reached &= np.array([state != 0 for state in units[i]])
        silent = np.array([i > 0 and state == 0 for state in (units[i - 1] if i else [None] * arch.widths[0])])
        still = [at for (j, k), at in np.ndenumerate(arch.weight_at[i]) if silent[k] or not reached[j]]
        bias = arch.bias_at[i]
        still += [] if bias is None else list(bias[~reached])
        for at in still:
            text = symbols.names[int(at)]
            why = "no error reaches its neuron, or its input is always off" if local else "no error reaches its neuron"
            yield Candidate("frozen", f"{text} is frozen: {why}", text, {(int(at),): 1}, True, True, local=local)


def constant_off_the_inputs(symbols: Symbols) -> Iterator[Candidate]:
    """On a data set: (W_1, b_1) z with x·z = 0 for every (x, 1) in it never moves, whatever the rule."""
    system, arch = symbols.system, symbols.system.arch
    if system.inputs is None:
        return
    biased = arch.bias_at[0] is not None
    common = math.lcm(*(Fraction(v).denominator for v in system.inputs.ravel()))
    columns = np.concatenate([system.inputs * common, np.full((len(system.inputs), int(biased)), common)], axis=1)
    for r, row in enumerate(left_null_space(integer(columns.T))):
        for j in range(arch.widths[1]):
            h: Polynomial = {}
            for k in range(arch.widths[0]):
                put(h, row[k], arch.weight_at[0][j, k])
            if biased:
                put(h, row[-1], arch.bias_at[0][j])  # pyright: ignore[reportOptionalSubscript]
            name = f"layer 1 is constant off the inputs, neuron {j + 1}, direction {r + 1}"
            letters = "(W1, b1)" if biased else "W1"
            text = f"({letters} z)[{j + 1}] with z = {row}"
            yield Candidate("data", name, text, h, numeric=True, to_output=True, orbit=("data", r))


BUILDERS: Final[tuple[Callable[[Symbols], Iterator[Candidate]], ...]] = (
    neuron_and_matrix,
    bias_shift,
    feedback_difference,
    moves_along,
    bias_combinations,
    direct_pairs,
    frozen,
    constant_off_the_inputs,
    within_reach,
    square_pair,
    angular_momentum,
)
"""Tried in this order; later laws count only when independent of earlier ones."""
