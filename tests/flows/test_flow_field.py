"""The field of a rule against formulas that do not share its code."""

import numpy as np
import pytest

from lawful.errors import SettingError
from lawful.flows.activations import ACTIVATIONS
from lawful.flows.feedback import given_feedback, numpy_states
from lawful.flows.field import Field
from lawful.flows.network import Network
from lawful.rules.backprop import Backprop
from lawful.rules.base import Rule
from lawful.rules.feedback_alignment import FeedbackAlignment
from lawful.rules.kolen_pollack import KolenPollack
from lawful.rules.uniform_sign_symmetry import UniformSignSymmetry

WIDTHS = [(3, 4, 1), (3, 5, 4, 2), (2, 3, 3, 3, 1), (4, 2)]


def make(widths, activation, bias, seed=0) -> tuple[Network, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    net = Network.random(widths, activation=activation, bias=bias, bias_scale=0.3, seed=rng)
    return net, rng.standard_normal((6, widths[0])), rng.standard_normal((6, widths[-1]))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("widths", WIDTHS)
def test_backpropagation_is_minus_the_gradient(widths, activation: str, bias: bool) -> None:
    net, X, Y = make(widths, activation, bias)
    field = Field(net, Backprop(), X, Y, kappa=0.7)
    theta, eps = net.theta(), 1e-6
    loss = lambda th: 0.35 * np.sum((net.with_theta(th).forward(X) - Y) ** 2)  # noqa: E731
    gradient = [(loss(theta + eps * e) - loss(theta - eps * e)) / (2 * eps) for e in np.eye(net.size)]
    np.testing.assert_allclose(field(theta), -np.array(gradient), rtol=1e-7, atol=1e-7)
    assert field.loss(theta) == pytest.approx(loss(theta), rel=1e-14)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_feedback_alignment_is_the_explicit_formula(activation: str) -> None:
    net, X, Y = make((3, 5, 4, 2), activation, True)
    rng = np.random.default_rng(5)
    B2, B3 = rng.standard_normal((4, 5)), rng.standard_normal((2, 4))
    field = Field(net, FeedbackAlignment(), X, Y, kappa=1.5, states=given_feedback(net, [None, B2, B3]))
    slope, value = ACTIVATIONS[activation].slope, ACTIVATIONS[activation].value
    assert net.biases is not None
    expected = [np.zeros_like(w) for w in net.weights]
    expected_b = [np.zeros_like(b) for b in net.biases]
    for x, y in zip(X, Y, strict=True):  # sample by sample, in column vectors
        h1 = net.weights[0] @ x + net.biases[0]
        h2 = net.weights[1] @ value(h1) + net.biases[1]
        d3 = 1.5 * (net.weights[2] @ value(h2) + net.biases[2] - y)
        d2 = slope(h2) * (B3.T @ d3)
        d1 = slope(h1) * (B2.T @ d2)
        for i, (d, a) in enumerate([(d1, x), (d2, value(h1)), (d3, value(h2))]):
            expected[i] -= np.outer(d, a)
            expected_b[i] -= d
    theta = net.theta()
    got, got_b = net.unpack(field(theta))
    assert got_b is not None
    for i in range(3):
        np.testing.assert_allclose(got[i], expected[i], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(got_b[i], expected_b[i], rtol=1e-12, atol=1e-13)
    first = field(theta)
    kept = first.copy()
    field(2 * theta)
    np.testing.assert_array_equal(first, kept)  # results are not the field's buffers
    np.testing.assert_array_equal(theta, net.theta())


def test_aligned_feedback_starts_as_backpropagation_only() -> None:
    net, X, Y = make((3, 4, 2), "relu", True)
    fa, bp = Field(net, FeedbackAlignment(init="aligned"), X, Y), Field(net, Backprop(), X, Y)
    np.testing.assert_array_equal(fa(fa.theta0), bp(bp.theta0))
    later = 1.1 * net.theta()
    assert np.abs(fa(later) - bp(later)).max() > 1e-3
    assert fa.feedback(later)[0] is None
    np.testing.assert_array_equal(fa.feedback(later)[1], net.weights[1])


@pytest.mark.parametrize(
    "rule",
    [Backprop(), FeedbackAlignment(seed=3, scale=0.8), KolenPollack(seed=1), UniformSignSymmetry()],
    ids=lambda rule: rule.name,
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_neuron_law_has_rate_zero_exactly_where_the_theory_says(rule: Rule, activation: str, bias: bool) -> None:
    """⟨Ẇ_i[j], W_i[j]⟩ + b_j ḃ_j = k ⟨Ẇ_{i+1}[:,j], B_{i+1}[:,j]⟩ for degree k; violated for tanh and for a wrong k."""
    net, X, Y = make((3, 5, 4, 2), activation, bias)
    field = Field(net, rule, X, Y)
    dW, db = net.unpack(field(net.theta()))
    B = field.feedback(net.theta())
    k = ACTIVATIONS[activation].degree
    for i in range(2):
        own = np.sum(dW[i] * net.weights[i], axis=1)
        if db is not None and net.biases is not None:
            own += db[i] * net.biases[i]
        read = np.sum(dW[i + 1] * B[i + 1], axis=0)
        if k is None:
            assert np.abs(own - read).max() > 1e-3
        else:
            np.testing.assert_allclose(own, k * read, rtol=1e-11, atol=1e-12)
            assert np.abs(own - (k + 1) * read).max() > 1e-3


def test_kappa_scales_time() -> None:
    net, X, Y = make((3, 4, 2), "tanh", True)
    one, third = (Field(net, FeedbackAlignment(), X, Y, kappa=kappa) for kappa in (1.0, 1 / 3))
    np.testing.assert_allclose(one(net.theta()), 3 * third(net.theta()), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("X", "Y", "kappa", "message"),
    [
        (np.ones((5, 2)), np.ones(5), 1.0, r"X must have shape \(n, 3\)"),
        (np.ones((5, 3)), np.ones(4), 1.0, r"Y must have shape \(5, 1\)"),
        (np.full((5, 3), np.inf), np.ones(5), 1.0, "finite"),
        (np.ones((5, 3)), np.ones(5), 0.0, "kappa"),
        (np.ones((0, 3)), np.ones(0), 1.0, "n >= 1"),
    ],
)
def test_wrong_data_is_named(X, Y, kappa: float, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Field(Network.random((3, 4, 1)), Backprop(), X, Y, kappa=kappa)


def test_wrong_number_of_states() -> None:
    net = Network.random((3, 4, 1))
    with pytest.raises(SettingError, match="expected 2 rule states"):
        Field(net, Backprop(), np.ones((1, 3)), [1.0], states=numpy_states(Backprop(), net)[:1])


def test_kolen_pollack_flows_with_feedback_that_moves_like_the_weight() -> None:
    net, X, Y = make((3, 4, 2), "relu", False)
    field = Field(net, KolenPollack(seed=1), X, Y)
    later = net.theta() + 0.3
    np.testing.assert_allclose(field.feedback(later)[1] - field.feedback(net.theta())[1], 0.3, rtol=1e-12)  # pyright: ignore


def test_a_rule_that_moves_its_state_by_itself_is_refused() -> None:
    with pytest.raises(SettingError, match=r"KolenPollack\(seed=0, decay=0.1\) moves it"):
        Field(Network.random((3, 4, 1)), KolenPollack(decay=0.1), np.ones((1, 3)), [1.0])
