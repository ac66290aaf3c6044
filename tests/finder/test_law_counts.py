"""The counts that theory and publications state, and those that only exact arithmetic gets right."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lawful import Backprop, FeedbackAlignment
from lawful.errors import SettingError
from lawful.finder.families import FAMILIES
from lawful.finder.formulas import linear_direct_feedback
from lawful.finder.search import find_laws
from lawful.rules.registry import rule_named

RIGHT_ANSWERS = [
    ("bp", (2, 3, 1), "linear", False, 6),
    ("bp", (1, 3, 1), "linear", False, 5),
    ("bp", (1, 4, 2), "linear", False, 9),
    ("fa", (2, 3, 1), "linear", False, 7),
    ("fa", (2, 2, 2, 1), "linear", False, 8),
    ("fa", (3, 4, 4, 3), "linear", False, 25),
    ("fa", (3, 4, 2), "linear", False, 13),
    ("fa", (4, 3, 2), "linear", False, 9),
    ("fa", (3, 2, 2, 3), "linear", False, 6),
    ("dfa", (3, 4, 4, 3), "linear", False, 25),
    ("dfa", (3, 2, 2, 3), "linear", False, 4),
    ("bp", (4, 9, 8, 7, 3), "relu", True, 24),
    ("fa", (4, 9, 8, 7, 3), "relu", True, 24),
    ("fa", (2, 6, 5, 4, 2), "leaky_relu", False, 15),
    ("rho-fa", (2, 6, 5, 4, 2), "relu", False, 15),
    ("dfa", (2, 2, 2, 1), "relu", False, 2),
    ("dfa", (3, 4, 4, 3), "relu", False, 4),
    ("dfa", (2, 6, 5, 4, 2), "relu", False, 4),
    ("dfa", (4, 9, 8, 7, 3), "relu", True, 7),
    ("usf", (2, 3, 2, 1), "relu", False, 8),
    ("usf", (2, 3, 2, 1), "relu", True, 5),
    ("frsf", (2, 3, 2, 1), "relu", True, 5),
    ("kp", (2, 3, 2, 1), "relu", False, 5 + 8),
    ("sign-fa", (2, 3, 2, 2), "relu", False, 0),
    ("drtp", (2, 3, 2, 2), "relu", False, 0),
    ("drtp", (2, 3, 2, 2), "linear", False, 7),
    ("mdfa", (2, 3, 2, 2), "relu", True, 2),
    ("mdfa", (2, 3, 2, 2), "relu", False, 6),
    ("bp", (2, 3, 2, 2), "square", True, 5),
]


@pytest.mark.parametrize(("rule", "widths", "activation", "bias", "count"), RIGHT_ANSWERS)
def test_count_is_certified(rule, widths, activation, bias, count):
    found = find_laws(widths, rule=rule, activation=activation, bias=bias)
    assert (found.count, found.bound, found.certified) == (count, count, True)
    assert len(found.laws) == count


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=3, max_size=5), st.booleans(), st.sampled_from(["bp", "fa"]))
def test_relu_nets_have_one_law_per_hidden_neuron(widths, bias, rule):
    if rule == "bp" and not bias and min(widths) == 1:
        return
    found = find_laws(widths, rule=rule, activation="relu", bias=bias)
    assert found.certified
    assert found.count == sum(widths[1:-1])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=3, max_size=5), st.integers(0, 100))
def test_linear_feedback_alignment_follows_the_dimension_formula(widths, seed):
    n, m, last = widths, widths[-1], len(widths) - 1
    rho = [None] + [min([*n[i:last], m]) for i in range(1, last)] + [m]
    rank = n[0] * rho[1] + sum(n[i] * (rho[i + 1] - rho[i]) + rho[i] * (rho[i] - 1) // 2 for i in range(1, last))
    found = find_laws(widths, rule="fa", activation="linear", seed=seed)
    size = sum(a * b for a, b in zip(widths, widths[1:], strict=False))
    assert (found.count, found.certified) == (size - rank, True)


@pytest.mark.parametrize("widths", [(3, 3, 2), (2, 4, 1), (5, 2, 2)])
def test_two_layer_linear_backprop(widths):
    d, r, m = widths
    expected = r * (r + 1) // 2
    found = find_laws(widths, rule="bp", activation="linear")
    assert (found.count, found.certified) == (expected, True) if d + m >= r else found.certified


def test_zero_column_of_B_adds_the_fan_in_minus_one():
    plain = find_laws([3, 2, 1], rule="fa", B=[np.array([[1.5, 2.5]])])
    zero = find_laws([3, 2, 1], rule="fa", B=[np.array([[0.0, 2.5]])])
    with_bias = find_laws([3, 2, 1], rule="fa", bias=True, B=[np.array([[0.0, 2.5]])])
    assert (plain.count, zero.count, with_bias.count) == (2, 2 + 2, 2 + 3)
    assert plain.certified and zero.certified and with_bias.certified


def test_tanh_is_bounded_and_never_certified():
    found = find_laws([2, 3, 2, 2], rule="fa", activation="tanh", bias=True)
    assert (found.count, found.bound, found.certified) == (0, 0, False)
    assert "never certified" in found.gap


def test_softmax_adds_the_shift_laws():
    free = find_laws([3, 4, 3], rule="fa", bias=True)
    softmax = find_laws([3, 4, 3], rule="fa", bias=True, output="softmax")
    assert softmax.certified and softmax.count == free.count + 4 + 1


def test_modules_and_rule_objects():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3, bias=False), torch.nn.ReLU(), torch.nn.Linear(3, 1, bias=False))
    assert find_laws(module, rule=Backprop()).count == 3
    linear = torch.nn.Sequential(torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 1, bias=False))
    assert find_laws(linear, rule=FeedbackAlignment()).count == 7
    mixed = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1, bias=False))
    assert find_laws(mixed, rule="fa").certified


def test_data_set_laws_are_more():
    inputs = [[1.0, 2.0, 3.0], [3.0, 1.0, 0.5]]
    free = find_laws([3, 2, 1], rule="fa", activation="linear")
    on_data = find_laws([3, 2, 1], rule="fa", activation="linear", inputs=inputs)
    assert on_data.certified and on_data.count > free.count
    assert any(law.kind == "data" for law in on_data.laws)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"widths": (2, 3, 1), "rule": "bp", "activation": "relu", "geometry": "decay"}, 3),
        ({"widths": (2, 2, 2), "rule": "kp", "activation": "linear", "geometry": "decay"}, 7),
        ({"widths": (2, 3, 1), "rule": "bp", "activation": "relu", "geometry": "momentum"}, 0),
        ({"widths": (2, 2, 2), "rule": "fa", "output": "softmax", "geometry": "momentum"}, 4),
    ],
)
def test_time_dependent_laws(options, count):
    options = dict(options)
    found = find_laws(options.pop("widths"), **options)
    assert (found.count, found.certified) == (count, True)


@pytest.mark.parametrize(
    ("widths", "options", "part"),
    [
        ((0, 3), {}, "widths"),
        ((2,), {}, "widths"),
        ((2, 3, 1), {"activation": "sofplus"}, "activation"),
        ((2, 3, 1), {"rule": "wm"}, "rule"),
        ((100, 100), {}, "8000"),
        ((2, 3, 1), {"B": [np.ones((2, 2))]}, "shapes"),
        ((2, 3, 1), {"inputs": np.ones((4, 3))}, "inputs"),
        ((9, 9, 9), {"degree": 3, "search": True}, "degree"),
        ((2, 3, 1), {"geometry": "adam"}, "geometry"),
        ((2, 3, 1), {"output": "hard"}, "output"),
        ((2.5, 3), {}, "whole numbers"),
        ("23", {}, "whole numbers"),
        (5, {}, "whole numbers"),
        ((10**30, 2), {}, "8000"),
        ((200, 200), {}, "would work, in about"),
        ((2, 3, 1), {"activation": ["relu"]}, "activation"),
        ((2, 3, 1), {"seed": -1}, "seed"),
        ((2, 3, 1), {"num_points": 0}, "num_points"),
        ((2, 3, 1), {"bias": "yes"}, "bias"),
        ((2, 3, 1), {"B": None}, "B must be"),
        ((2, 3, 1), {"B": [[["a", "b", "c"]]]}, "real numbers"),
        ((2, 3, 1), {"B": [np.ones((1, 3)) * 1j]}, "real numbers"),
        ((2, 3, 1), {"B": [[[1, 2], [3]]]}, "B must be an array"),
        ((2, 3, 1), {"inputs": [[1, float("nan")]]}, "finite"),
        ((2, 3, 2, 1), {"rule": "sign-fa", "activation": "square"}, "two layers"),
    ],
)
def test_bad_input_says_what_is_allowed(widths, options, part):
    with pytest.raises(SettingError, match=part):
        find_laws(widths, **{"rule": "fa", **options})  # pyright: ignore[reportArgumentType]


def test_interruption_keeps_the_rank_reached():
    seen = []

    def interrupt(fraction, text):
        seen.append(text)
        if "brackets of level 1" in text:
            raise KeyboardInterrupt

    found = find_laws([3, 4, 4, 3], rule="fa", activation="linear", progress=interrupt)
    assert found.interrupted and found.count == 25 and found.bound >= 25
    assert found.ranks[0].levels == [9, 15]
    assert found.bound == 40 - 15


INTERRUPTED = """
import os, signal
from lawful.finder.search import find_laws
signal.signal(signal.SIGINT, signal.default_int_handler)
def interrupt(fraction, text):
    if "brackets of level 1" in text:
        os.kill(os.getpid(), signal.SIGINT)
found = find_laws([3, 4, 4, 3], rule="fa", activation="linear", progress=interrupt)
print(found, found.interrupted, found.ranks[0].levels)
"""


def test_a_real_interrupt_keeps_what_is_known():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("fa (3, 4, 4, 3) linear: 25 independent laws")
    assert done.stdout.endswith("True [9, 15]\n")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=3, max_size=5), st.integers(0, 100))
def test_linear_direct_feedback_follows_its_formula(widths, seed):
    found = find_laws(widths, rule="dfa", activation="linear", seed=seed)
    assert (found.count, found.certified) == (linear_direct_feedback(widths), True)


def test_rule_options_are_not_ignored():
    with pytest.raises(SettingError, match="its own B"):
        find_laws([2, 3, 1], rule=FeedbackAlignment(B=torch.ones(1, 3)))
    with pytest.raises(SettingError, match="geometry"):
        find_laws([2, 3, 1], rule=rule_named("kp", decay=0.1))


@pytest.mark.parametrize("name", FAMILIES)
def test_registry_names_and_rule_objects_agree(name):
    made = rule_named(name, **({"rho": 0.5} if name == "rho-fa" else {}))
    by_name, by_object = find_laws([2, 3, 2], rule=name), find_laws([2, 3, 2], rule=made)
    assert (by_name.count, by_name.bound) == (by_object.count, by_object.bound)
