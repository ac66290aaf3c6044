"""The certified rate is a true bound, and not an empty one."""

import numpy as np
import pytest

from lawful.errors import NoLawError, SettingError
from lawful.flows.feedback import given_feedback
from lawful.flows.field import Field
from lawful.flows.network import Network
from lawful.flows.rates import certify, measured_rate
from lawful.flows.solve import solve
from lawful.rules.feedback_alignment import FeedbackAlignment


def run(n: int, bias: bool, seed: int, reachable: bool):
    rng = np.random.default_rng(seed)
    net = Network.random((12, 20, 1), bias=bias, bias_scale=0.1, init_scale=(0.05, 0.5), seed=rng)
    X = rng.standard_normal((n, 12))
    y = X @ rng.standard_normal(12) if reachable else rng.standard_normal(n)
    field = Field(net, FeedbackAlignment(init="aligned"), X, y, kappa=2 / n)
    certificate = certify(net, field.states, X, y, kappa=2 / n)
    trajectory = solve(field, 4 / certificate.rate, num_points=60, check=False)
    errors = np.array([np.linalg.norm(field.error(theta)) for theta in trajectory.theta])
    return field, certificate, trajectory, errors


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("reachable", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n", [6, 30])
def test_certificate_bounds_the_error_at_all_times(n: int, bias: bool, reachable: bool, seed: int) -> None:
    field, certificate, trajectory, errors = run(n, bias, seed, reachable)
    assert certificate.holds
    assert (errors <= certificate.bound(trajectory.t) * (1 + 1e-9) + 1e-8).all()
    assert (certificate.floor > 0.1) == (n > 12 and not reachable)
    measured = measured_rate(trajectory.t, trajectory.loss, floor=0.5 * field.kappa * certificate.floor**2)
    assert certificate.rate <= measured.slowest * (1 + 1e-6)
    assert certificate.rate <= measured.final * (1 + 1e-6)


def test_constants_are_the_formulas() -> None:
    rng = np.random.default_rng(0)
    W1, w2, b = rng.standard_normal((4, 3)), rng.standard_normal(4), rng.standard_normal(4)
    X, y = rng.standard_normal((2, 3)), rng.standard_normal(2)
    net = Network.make([W1, w2[None]])
    got = certify(net, given_feedback(net, [None, b[None]]), X, y, kappa=0.3)
    assert got.c == pytest.approx(b @ w2 - 0.5 * np.sum(W1**2), rel=1e-13)
    assert got.lambda_min == pytest.approx(np.linalg.eigvalsh(X @ X.T)[0], rel=1e-12)
    assert got.rate == pytest.approx(0.3 * got.c * got.lambda_min, rel=1e-13)
    assert got.error == pytest.approx(np.linalg.norm(X @ W1.T @ w2 - y), rel=1e-12)
    assert got.floor == pytest.approx(0, abs=1e-12)
    assert got.holds == (got.c > 0)


def test_constants_with_biases() -> None:
    """Layer 1 sees [X, 1], the output bias adds 11ᵀ: rate = λ_min(c [X, 1][X, 1]ᵀ + 11ᵀ) for n <= d."""
    rng = np.random.default_rng(0)
    W1, b1, w2, b = rng.standard_normal((9, 4)), rng.standard_normal(9), rng.standard_normal(9), rng.standard_normal(9)
    X, y = rng.standard_normal((3, 4)), rng.standard_normal(3)
    net = Network.make([0.1 * W1, w2[None]], [0.5 * b1, [0.4]])
    b = b if b @ w2 > 0 else -b
    got = certify(net, given_feedback(net, [None, 3 * b[None]]), X, y)
    c = 3 * b @ w2 - 0.5 * np.sum((0.1 * W1) ** 2) - 0.5 * np.sum((0.5 * b1) ** 2)
    assert got.c == pytest.approx(c, rel=1e-13)
    assert got.holds
    ones = np.ones((3, 1))
    kernel = c * (X @ X.T + ones @ ones.T) + ones @ ones.T
    assert got.rate == pytest.approx(np.linalg.eigvalsh(kernel)[0], rel=1e-11)


def test_bound_is_attained_when_the_hidden_layer_starts_at_zero_and_barely_moves() -> None:
    """W_1(0) = 0 and large b, w_2: ⟨b, w_2⟩ barely moves, so the error decays at the certified rate itself."""
    net = Network.make([np.zeros((5, 1)), np.full((1, 5), 100.0)])
    states = given_feedback(net, [None, np.full((1, 5), 100.0)])
    X, y = np.array([[1.0]]), [1.0]
    certificate = certify(net, states, X, y)
    trajectory = solve(Field(net, FeedbackAlignment(), X, y, states=states), 10 / certificate.rate, num_points=50)
    measured = measured_rate(trajectory.t, trajectory.loss)
    assert 1 - 1e-9 <= measured.final / certificate.rate < 1 + 1e-6


def test_measured_rate_of_an_exponential() -> None:
    t = np.linspace(0, 30, 100)
    got = measured_rate(t, 7 * np.exp(-2 * 0.8 * t) + 1e-18)
    assert got.slowest == pytest.approx(0.8, rel=1e-6)
    assert got.final == pytest.approx(0.8, rel=1e-4)


def test_refusals_of_rates() -> None:
    X, y = np.ones((2, 3)), np.ones(2)
    for net in (
        Network.random((3, 4, 4, 1)),
        Network.random((3, 4, 1), activation="relu"),
        Network.random((3, 1)),
        Network.random((3, 4, 2)),
    ):
        with pytest.raises(NoLawError, match="two-layer linear networks with one output"):
            certify(net, [{}] * net.depth, X, y)
    net = Network.random((3, 4, 1))
    with pytest.raises(SettingError, match="X is zero"):
        certify(net, given_feedback(net, [None, np.ones((1, 4))]), 0 * X, y)
    with pytest.raises(SettingError, match="loss"):
        measured_rate([0.0], [1.0])
    with pytest.raises(SettingError, match="early times"):
        measured_rate([0.0, 1.0], [1.0, 1e-30])
