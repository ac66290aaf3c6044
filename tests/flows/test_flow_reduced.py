"""The exact reduction against full integration and full SGD, and its closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lawful.errors import NoLawError, SettingError
from lawful.flows.descent import descend
from lawful.flows.feedback import given_feedback
from lawful.flows.field import Field
from lawful.flows.network import Network
from lawful.flows.reduced import ReducedDescent, ReducedFlow
from lawful.flows.solve import solve
from lawful.rules.backprop import Backprop
from lawful.rules.feedback_alignment import FeedbackAlignment

NETS = [
    ((4, 7, 1), False),
    ((4, 7, 1), True),
    ((4, 6, 3), False),
    ((3, 5, 4, 1), True),
    ((4, 6, 5, 3), True),
    ((3, 4, 4, 4, 2), True),
    ((3, 2, 2, 3), False),
    ((5, 2), True),
]


def both(widths, bias: bool, cls, seed: int = 0, n: int = 6):
    rng = np.random.default_rng(seed)
    net = Network.random(widths, bias=bias, bias_scale=0.3, seed=rng)
    X, Y = rng.standard_normal((n, widths[0])), rng.standard_normal((n, widths[-1]))
    rule = FeedbackAlignment(seed=seed)
    return Field(net, rule, X, Y, kappa=0.5), cls(net, X, Y, rule=rule, kappa=0.5)


@pytest.mark.parametrize(("widths", "bias"), NETS)
def test_reduced_flow_is_the_full_flow(widths, bias: bool) -> None:
    full, reduced = both(widths, bias, ReducedFlow)
    m, hidden = widths[-1], len(widths) - 2
    assert len(reduced.theta0) == widths[0] * m + bias * m + hidden * m * (m - 1) // 2
    a = solve(full, 0.6, rtol=1e-12, num_points=6, check=False)
    b = solve(reduced, 0.6, rtol=1e-12, num_points=6, check=False)
    assert np.abs(a.theta[-1] - a.theta[0]).max() > 0.05
    for x, z in zip(a.theta, b.theta, strict=True):
        assert np.abs(reduced.lift(z).theta() - x).max() < 1e-10
    np.testing.assert_allclose(b.loss, a.loss, rtol=0, atol=1e-10)
    P, c = reduced.end_to_end(b.final)
    np.testing.assert_allclose(full.X @ P.T + c, full.forward(a.final), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("widths", "bias"), NETS)
def test_reduced_descent_is_minibatch_sgd(widths, bias: bool) -> None:
    full, reduced = both(widths, bias, ReducedDescent)
    net, rng = full.network, np.random.default_rng(1)
    theta, z = net.theta(), reduced.theta0
    for _ in range(60):
        rows = rng.choice(6, 2, replace=False)
        batch = Field(net, full.rule, full.X[rows], full.Y[rows], kappa=0.5, states=full.states)
        theta = theta + 0.03 * batch(theta)
        z = reduced.step(z, 0.03, rows)
    assert np.abs(theta - net.theta()).max() > 0.05
    np.testing.assert_allclose(reduced.lift(z).theta(), theta, rtol=0, atol=1e-12)


def test_descend_accepts_the_reduction() -> None:
    full, reduced = both((4, 6, 5, 3), True, ReducedDescent)
    a, b = descend(full, 0.05, 50), descend(reduced, 0.05, 50)
    np.testing.assert_allclose(b.loss, a.loss, rtol=1e-11)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=5), st.booleans(), st.integers(0, 99))
def test_any_shape_has_the_lifted_velocity(widths: list[int], bias: bool, seed: int) -> None:
    """d/dt lift(θ) = F(lift(θ)): checked by a central difference along the reduced velocity, away from the start."""
    full, reduced = both(tuple(widths), bias, ReducedFlow, seed=seed)
    z = reduced.theta0 + 0.05 * np.random.default_rng(seed).standard_normal(len(reduced.theta0))
    eps = 1e-5
    v = reduced(z)
    slope = (reduced.lift(z + eps * v).theta() - reduced.lift(z - eps * v).theta()) / (2 * eps)
    expected = full(reduced.lift(z).theta())
    np.testing.assert_allclose(slope, expected, rtol=0, atol=1e-6 * (1 + np.abs(expected).max()))


def test_two_layer_closed_form() -> None:
    """w(u) = (W_1 − b uᵀ)ᵀ (w_2 − W_1 u + ½‖u‖² b), theory of the scalar two-layer net."""
    full, reduced = both((4, 7, 1), False, ReducedFlow)
    W1, w2, b = full.network.weights[0], full.network.weights[1][0], full.states[1]["B"][0]
    u = np.array([0.3, -1.0, 0.2, 0.7])
    P, _ = reduced.end_to_end(u)
    np.testing.assert_allclose(P[0], (W1 - np.outer(b, u)).T @ (w2 - W1 @ u + 0.5 * (u @ u) * b), rtol=1e-12)


def test_a_step_costs_the_same_at_any_width() -> None:
    sizes = set()
    for width in (5, 5000):
        net = Network.random((6, width, width // 5, 2), init_scale=0.01, bias=True, seed=0)
        reduced = ReducedFlow(net, np.ones((3, 6)), np.ones((3, 2)), rule=FeedbackAlignment(scale=0.01))
        at = reduced._locate(reduced.theta0)
        sizes.add((len(reduced.theta0), *(N.shape for N in at.N), at.P.shape))
    assert len(sizes) == 1


def test_refusals() -> None:
    X, Y = np.ones((2, 3)), np.ones(2)
    with pytest.raises(NoLawError, match="linear network; got activations relu"):
        ReducedFlow(Network.random((3, 4, 1), activation="relu"), X, Y, rule=FeedbackAlignment())
    with pytest.raises(SettingError, match=r"rule=FeedbackAlignment\(…\); got Backprop"):
        ReducedFlow(Network.random((3, 4, 1)), X, Y, rule=Backprop())  # pyright: ignore[reportArgumentType]
    with pytest.raises(SettingError, match="shape"):
        ReducedFlow(Network.random((3, 4, 1)), X, np.ones(3), rule=FeedbackAlignment())
    net = Network.random((3, 4, 1))
    given_states = given_feedback(net, [None, np.ones((1, 4))])
    assert ReducedFlow(net, X, Y, states=given_states).loss(np.zeros(3)) > 0
