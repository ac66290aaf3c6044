"""An expansion is zero for laws only: for each of them there is a neighbour that must be refused."""

from fractions import Fraction

import numpy as np
import pytest

from lawful.finder.architectures import Architecture
from lawful.finder.expansion import flint_rate
from lawful.finder.families import FAMILIES
from lawful.finder.fields import System, draw_feedback
from lawful.finder.named_laws import neuron_and_matrix
from lawful.finder.proof import rate_of
from lawful.finder.search import find_laws
from lawful.finder.symbols import Symbols


def symbols_of(widths, rule, activation, bias=False, **options):
    arch = Architecture(widths, activation, (bias,) * (len(widths) - 1))
    family = FAMILIES[rule]
    return Symbols(System(arch, family, draw_feedback(arch, family, np.random.default_rng(0)), **options))


def expands_to_zero(symbols, h):
    """Both programs, which must agree."""
    first = not any(rate_of(symbols, h, numeric=False, to_output=False))
    second = not flint_rate(symbols, {m: Fraction(c) for m, c in h.items()}, numeric=False)
    assert first == second
    return first


@pytest.mark.parametrize("rule", ["bp", "fa", "kp", "dfa"])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_matrix_laws_are_no_laws_of_relu(rule, bias):
    linear, relu = (symbols_of((2, 3, 2, 2), rule, activation, bias) for activation in ("linear", "relu"))
    laws = list(neuron_and_matrix(linear))
    assert {law.kind for law in laws} == {"neuron", "matrix"}
    for law in laws:
        assert expands_to_zero(linear, law.polynomial)
        assert expands_to_zero(relu, law.polynomial) == (law.kind == "neuron")


def test_laws_of_the_identity_are_no_laws_of_the_square():
    relu, square = symbols_of((2, 3, 1), "fa", "relu"), symbols_of((2, 3, 1), "fa", "square")
    first, second = next(neuron_and_matrix(relu)), next(neuron_and_matrix(square))
    assert expands_to_zero(square, second.polynomial) and not expands_to_zero(square, first.polynomial)


def test_every_changed_coefficient_is_refused():
    symbols = symbols_of((2, 3, 2, 1), "fa", "relu", True)
    law = list(neuron_and_matrix(symbols))[-1]
    for monomial in law.polynomial:
        assert not expands_to_zero(symbols, {**law.polynomial, monomial: 3 * law.polynomial[monomial]})


def test_column_sums_need_softmax():
    free, softmax = symbols_of((2, 3, 2), "fa", "relu"), symbols_of((2, 3, 2), "fa", "relu", softmax=True)
    at = free.system.arch.weight_at[1]
    h = {(int(at[0, 0]),): 1, (int(at[1, 0]),): 1}
    assert expands_to_zero(softmax, h) and not expands_to_zero(free, h)


@pytest.mark.parametrize("rule", ["bp", "fa", "kp", "usf", "dfa"])
@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_one_representative_stands_for_all_its_renamings(rule, activation):
    found = find_laws((3, 4, 3, 2), rule=rule, activation=activation, bias=True, seed=2)
    for law in found.laws:
        if law.kind in ("neuron", "matrix"):
            assert not flint_rate(law.symbols, {m: Fraction(c) for m, c in law.terms.items()}, numeric=False)
