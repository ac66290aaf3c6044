"""Networks as flat vectors, their activations, and the feedback drawn for them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lawful.errors import SettingError
from lawful.flows.activations import ACTIVATIONS
from lawful.flows.feedback import given_feedback, numpy_states
from lawful.flows.network import Network
from lawful.rules.backprop import Backprop
from lawful.rules.base import generator_for
from lawful.rules.feedback_alignment import FeedbackAlignment


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=5), st.booleans(), st.integers(0, 9))
def test_theta_packs_every_parameter_once(widths: list[int], bias: bool, seed: int) -> None:
    net = Network.random(widths, bias=bias, bias_scale=1.0, seed=seed)
    theta = net.theta()
    assert theta.shape == (net.size,) == (sum(i * o + bias * o for i, o in zip(widths, widths[1:], strict=False)),)
    again = net.with_theta(theta)
    for mine, back in zip(net.weights, again.weights, strict=True):
        np.testing.assert_array_equal(mine, back)
    theta[:] = 0  # a copy: neither network sees it
    assert np.abs(again.theta()).max() > 0
    stacked, _ = net.unpack(np.stack([net.theta(), 2 * net.theta()]))
    np.testing.assert_array_equal(stacked[0][1], 2 * net.weights[0])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_forward_is_torchs(name: str) -> None:
    reference = {
        "linear": lambda h: h,
        "relu": torch.relu,
        "leaky_relu": torch.nn.functional.leaky_relu,
        "square": lambda h: torch.relu(h) ** 2,
        "tanh": torch.tanh,
    }[name]
    net = Network.random((3, 5, 4, 2), activation=name, bias=True, bias_scale=0.5, seed=2)
    assert net.biases is not None
    X = np.random.default_rng(0).standard_normal((6, 3))
    a = torch.from_numpy(X)
    for i, (W, b) in enumerate(zip(net.weights, net.biases, strict=True)):
        h = torch.nn.functional.linear(a, torch.from_numpy(W), torch.from_numpy(b))
        a = reference(h) if i < 2 else h
    np.testing.assert_allclose(net.forward(X), a.numpy(), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slope_and_degree(name: str) -> None:
    sigma = ACTIVATIONS[name]
    h = np.array([-2.0, -0.7, 0.3, 1.9])
    eps = 1e-6
    np.testing.assert_allclose(sigma.slope(h), (sigma.value(h + eps) - sigma.value(h - eps)) / (2 * eps), rtol=1e-8)
    if sigma.degree is not None:
        np.testing.assert_allclose(sigma.value(3 * h), 3**sigma.degree * sigma.value(h), rtol=1e-14)
    else:
        ratio = sigma.value(3 * h) / sigma.value(h)
        assert ratio.max() - ratio.min() > 0.1


def test_states_are_those_of_the_rule() -> None:
    net = Network.random((3, 4, 2), seed=0)
    rule = FeedbackAlignment(seed=7)
    expected = rule.init(torch.zeros(2, 4, dtype=torch.float64), generator_for(7, "2.weight"))["B"].numpy()
    states = numpy_states(rule, net)
    np.testing.assert_array_equal(states[1]["B"], expected)
    assert states[0] == {}
    assert numpy_states(Backprop(), net) == ({}, {})
    np.testing.assert_array_equal(numpy_states(FeedbackAlignment(init="aligned"), net)[1]["B"], net.weights[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Network.make([np.ones((2, 3)), np.ones((1, 3))]), "weight 2 must read the 2 outputs"),
        (lambda: Network.make([np.ones(3)]), "non-empty matrices"),
        (lambda: Network.make([np.ones((2, 3))], [np.ones(3)]), r"biases must have shapes \[\(2,\)\]"),
        (lambda: Network.make([np.full((1, 1), np.nan)]), "finite"),
        (lambda: Network.random((3, 2, 1), activation="gelu"), "linear, relu, leaky_relu, square, tanh"),
        (lambda: Network.random((3, 0, 1)), "widths"),
        (lambda: Network.random((3, 2, 1), init_scale=(1.0, 2.0, 3.0)), "2 of them"),
        (lambda: Network.random((3, 2, 1), init_scale=-1.0), "init_scale"),
        (lambda: Network.random((3, 2, 1), activation=("relu", "relu")), "expected 1 activations"),
        (lambda: given_feedback(Network.random((3, 2, 1)), [None, np.ones((2, 1))]), "B_2 must have the shape"),
        (lambda: given_feedback(Network.random((3, 2, 1)), [None]), "expected 2 feedback weights"),
        (lambda: Network.random((3, 2, 1)).unpack(np.zeros(5)), "must have 8 elements"),
    ],
)
def test_wrong_settings_are_named(call, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        call()
