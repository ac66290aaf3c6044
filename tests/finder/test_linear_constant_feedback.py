"""The reduced dimension of linear nets under constant feedback: never below the rank, and equal to it when counted."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lawful.errors import SettingError
from lawful.finder import residues as ff
from lawful.finder.architectures import Architecture
from lawful.finder.families import FAMILIES
from lawful.finder.fields import System, draw_data, draw_point
from lawful.finder.formulas import linear_constant_feedback, linear_direct_feedback, linear_feedback_alignment
from lawful.finder.lie_algebra import bracket_rows
from lawful.finder.rule_objects import structured_feedback, weight_names
from lawful.finder.search import find_laws
from lawful.finder.signs import cells, num_cells
from lawful.rules.base import generator_for
from lawful.rules.registry import rule_named


def constant_maps(widths, rule, B, softmax=False):
    """D_1 … D_L from given feedback, one row a free signal, written down for each rule by hand."""
    m, depth = widths[-1], len(widths) - 1
    free = np.eye(m, dtype=int)
    free = free[:-1] - free[-1] if softmax else free
    if rule == "dfa":
        return [free @ D for D in B] + [free]
    if rule == "drtp":
        outputs = np.concatenate([np.zeros((m, m), dtype=int), free])
        return [np.concatenate([D, np.zeros((len(free), D.shape[1]), dtype=int)]) for D in B] + [outputs]
    maps = [free]
    for i in reversed(range(depth - 1)):
        maps.insert(0, maps[0] @ B[i])
    return maps


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=3, max_size=5),
    st.sampled_from(["fa", "dfa", "drtp"]),
    st.booleans(),
    st.booleans(),
    st.integers(-1, 1),
)
def test_the_count_is_the_reduced_dimension_whatever_B_is(widths, rule, bias, softmax, smallest):
    """Feedback of entries -1, 0, 1 is often rank-deficient."""
    softmax = softmax and widths[-1] > 1
    rng = np.random.default_rng(sum(widths) + 10 * (smallest + 1))
    direct = rule != "fa"
    shapes = [(widths[-1] if direct else widths[i + 1], widths[i]) for i in range(1, len(widths) - 1)]
    B = [rng.integers(smallest, 2, shape) if smallest <= 0 else rng.integers(1, 100, shape) for shape in shapes]
    output = "softmax" if softmax else "free"
    found = find_laws(widths, rule=rule, activation="linear", bias=bias, B=B, output=output)
    least = linear_constant_feedback(widths, constant_maps(widths, rule, B, softmax), bias)
    assert found.bound >= least
    assert found.count <= found.bound
    if smallest > 0:
        assert (found.bound, found.certified) == (least, True)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rule", ["fa", "dfa"])
@pytest.mark.parametrize("widths", [(1, 2, 2, 2, 2, 2, 2), (1, 3, 3, 3, 3), (2, 3, 2, 4, 2, 2), (1, 4, 3, 3)])
def test_hidden_layers_as_wide_as_the_output_at_any_depth(widths, rule, bias):
    m, depth = widths[-1], len(widths) - 1
    rank = (widths[0] + bias) * m + (depth - 1) * m * (m - 1) // 2
    found = find_laws(widths, rule=rule, activation="linear", bias=bias)
    assert (found.dimension - found.bound, found.certified) == (rank, True)


@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_the_rank_is_attained_already_at_zero_weights_and_isometric_feedback(rule):
    """The point of the proof: θ = 0, C_i = (1, 0)ᵀ."""
    widths, m = (1, 3, 3, 3, 2), 2
    arch = Architecture(widths, "linear", (False,) * 4)
    inclusion = np.eye(3, dtype=int).astype(object)
    last = inclusion[:m]
    B = [np.zeros((0, 0), dtype=object), *([last] * 3 if rule == "dfa" else [inclusion, inclusion, last])]
    system = System(arch, FAMILIES[rule], tuple(B))
    zero = [np.zeros_like(block) for block in draw_point(system, np.random.default_rng(0))]
    echelon, rng = ff.Echelon(system.dimension), np.random.default_rng(1)
    for level in range(8):
        data = [draw_data(system, zero, 24, rng) for _ in range(level + 1)]
        echelon.add(bracket_rows(system, system.B, zero, data, 24))
    assert echelon.rank == widths[0] * m + 3 * m * (m - 1) // 2


def test_closed_formulas_are_the_reduced_dimension_of_generic_maps():
    rng = np.random.default_rng(0)
    for depth in (2, 3, 4):
        for widths in itertools.islice(itertools.product(range(1, 5), repeat=depth + 1), 0, None, 7):
            for rule, formula in (("fa", linear_feedback_alignment), ("dfa", linear_direct_feedback)):
                shapes = [(widths[-1] if rule == "dfa" else widths[i + 1], widths[i]) for i in range(1, depth)]
                maps = constant_maps(widths, rule, [rng.integers(1, 10**6, s).astype(object) for s in shapes])
                for bias in (False, True):
                    assert formula(widths, bias) == linear_constant_feedback(widths, maps, bias)


def direct_formula_by_rows(widths):
    """Σ_{i<L} [ν_i n_{i-1} + s_i(s_i + 1)/2 - ν_i(ν_i + 1)/2]: the named laws of the net, counted."""
    n, m, last, total = list(widths), widths[-1], len(widths) - 1, 0
    for i in range(1, last):
        still = n[i] - min(n[i], m)
        lost = m - min(n[i + 1], m) if i + 1 < last else 0
        matched = n[i] - min(n[i], lost)
        total += still * n[i - 1] + matched * (matched + 1) // 2 - still * (still + 1) // 2
    return total


def test_the_two_forms_of_the_direct_formula_agree():
    for depth in (2, 3, 4, 5):
        for widths in itertools.product(range(1, 6), repeat=depth + 1):
            assert linear_direct_feedback(widths) == direct_formula_by_rows(widths)


@pytest.mark.parametrize(("widths", "bias"), [((3, 4, 2, 1), True), ((2, 3, 3, 2), False), ((3, 2, 4, 1), False)])
def test_sign_feedback_through_linear_nets_is_certified(widths, bias):
    for seed in range(4):
        assert find_laws(widths, rule="sign-fa", activation="linear", bias=bias, seed=seed).certified


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 1000))
def test_cells_are_complete(dimension, count, seed):
    rng = np.random.default_rng(seed)
    columns = [[int(x) for x in rng.integers(-99, 100, dimension)] for _ in range(count)]
    found = cells(columns)
    patterns = {pattern for pattern, _ in found}
    assert len(patterns) == len(found) <= num_cells(dimension, count)
    for pattern, e in found:
        products = [sum(x * y for x, y in zip(e, c, strict=True)) for c in columns]
        assert pattern == tuple((x > 0) - (x < 0) for x in products)
    shown = np.sign(rng.standard_normal((3000, dimension)) @ np.array(columns).T).astype(int)
    assert {tuple(int(x) for x in row) for row in shown} <= patterns


def test_cells_in_general_position_are_as_many_as_there_can_be():
    rng = np.random.default_rng(0)
    for dimension, count in [(2, 5), (3, 6), (4, 6), (5, 5)]:
        columns = [[int(x) for x in rng.integers(-(10**6), 10**6, dimension)] for _ in range(count)]
        assert len(cells(columns)) == num_cells(dimension, count)


def test_laws_of_an_orthant_are_bounded_in_that_orthant():
    """Two points in different orthants once gave the lower bound of the wrong one."""
    found = find_laws((2, 3, 2, 3, 2), rule="usf", activation="relu", seed=2)
    assert (found.count, found.bound) == (24, 24)
    assert {law.kind for law in found.laws} <= {"neuron", "matrix", "frozen"}
    for seed in range(8):
        assert find_laws((2, 3, 2, 3, 2), rule="frsf", activation="relu", seed=seed).certified


def test_every_point_tried_lies_in_the_orthant_of_the_first(monkeypatch):
    from lawful.finder import search

    monkeypatch.setattr(search, "BUILDERS", ())
    found = find_laws((2, 3, 2, 2), rule="usf", activation="relu", search=False)
    first, second = (rank.point for rank in found.ranks)
    for a, b in zip(first[1:], second[1:], strict=True):
        np.testing.assert_array_equal(np.sign(a), np.sign(b))


def test_low_rank_and_shared_feedback_keep_their_structure():
    arch, rng = Architecture((3, 4, 4, 2), "linear", (False,) * 3), np.random.default_rng(0)
    low = structured_feedback(rule_named("low-rank-fa", rank=1), arch, [], rng)
    assert low is not None
    assert [np.linalg.matrix_rank(b.astype(float)) for b in low[1:]] == [1, 1]
    shared = structured_feedback(rule_named("shared-dfa"), Architecture((3, 2, 4, 2), "relu", (False,) * 3), [], rng)
    assert shared is not None
    np.testing.assert_array_equal(shared[1], shared[2][:, :2])
    generic = find_laws((3, 4, 4, 2), rule="fa", activation="linear")
    narrow = find_laws((3, 4, 4, 2), rule=rule_named("low-rank-fa", rank=1), activation="linear")
    assert narrow.certified and narrow.count == generic.count + 1


def test_sparse_feedback_has_the_zeros_of_the_module():
    module = torch.nn.Sequential(torch.nn.Linear(3, 6, bias=False), torch.nn.ReLU(), torch.nn.Linear(6, 2, bias=False))
    rule = rule_named("sparse-fa", density=0.3, seed=5)
    drawn = rule.init(module[2].weight.detach(), generator_for(5, "2.weight"))["B"]
    found = find_laws(module, rule=rule)
    np.testing.assert_array_equal(found.system.exact[1] == 0, drawn.numpy() == 0)
    dead = int((drawn == 0).all(0).sum())
    assert dead and found.certified and found.count == 6 + dead * (3 - 1)
    assert weight_names((3, 6, 2), found.architecture) == ["2.weight"]


def test_rules_that_cannot_be_counted_say_what_can():
    class Mine(type(rule_named("fa"))):
        """A user's own."""

    for rule in ("wm", "brsf", Mine(), rule_named("wm"), 3, None):
        with pytest.raises(SettingError, match=r"rule='fa' with B=\[B_2, …, B_L\]"):
            find_laws([2, 3, 1], rule=rule)
    for rule, part in [
        (rule_named("usf", adaptive=True), "adaptive"),
        (rule_named("fa", init="orthogonal"), "orthogonal"),
        (rule_named("fa", scale=0.0), "scale 0"),
        (rule_named("dfa", taps=["1"]), "taps"),
        (rule_named("sign-fa", magnitude=0.0), "magnitude"),
    ]:
        with pytest.raises(SettingError, match=part):
            find_laws([2, 3, 1], rule=rule)
    with pytest.raises(SettingError, match="biases"):
        find_laws([2, 3, 1], rule=rule_named("kp", decay=0.1), bias=True, geometry="decay")
