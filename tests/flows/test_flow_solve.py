"""Solvers: measured orders, honest error estimates, laws kept, clear errors."""

import numpy as np
import pytest

from lawful.errors import DivergenceError, SettingError
from lawful.flows.activations import Floats
from lawful.flows.descent import descend
from lawful.flows.field import Field
from lawful.flows.network import Network
from lawful.flows.solve import METHODS, solve
from lawful.rules.backprop import Backprop
from lawful.rules.base import Rule
from lawful.rules.feedback_alignment import FeedbackAlignment


class Riccati:
    """θ̇ = θ², θ(t) = θ0/(1 − θ0 t): closed form, blows up at t = 1/θ0."""

    def __init__(self, start: float = 0.5) -> None:
        self.theta0 = np.array([start])

    def __call__(self, theta: Floats) -> Floats:
        return theta * theta

    def loss(self, theta: Floats) -> float:
        return float(theta[0]) ** -2


class Ordinary:
    """A harmonic oscillator: the quadratic invariant |θ|² is exact."""

    theta0 = np.array([1.0, 0.0])

    def __call__(self, theta: Floats) -> Floats:
        return np.array([theta[1], -theta[0]])

    def loss(self, theta: Floats) -> float:
        return 1.0


def flow(activation: str, rule: Rule, widths=(4, 6, 1), bias: bool = True, seed: int = 0) -> Field:
    rng = np.random.default_rng(seed)
    net = Network.random(widths, activation=activation, bias=bias, bias_scale=0.2, seed=rng)
    return Field(net, rule, rng.standard_normal((5, widths[0])), rng.standard_normal((5, widths[-1])), kappa=0.4)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("rk4", 4), ("gauss-legendre", 4)])
def test_order_of_convergence(method: str, order: int) -> None:
    field = flow("tanh", FeedbackAlignment(seed=1))
    exact = solve(field, 1.0, num_points=1, rtol=1e-13, atol=1e-14, check=False).final
    steps = np.array([0.05, 0.025, 0.0125])
    got = [solve(field, 1.0, num_points=1, method=method, step=h, check=False).final for h in steps]
    errors = [np.linalg.norm(theta - exact) for theta in got]
    assert errors[-1] > 1e-11  # far above rounding and above the reference's error
    measured = np.diff(np.log(errors)) / np.diff(np.log(steps))
    np.testing.assert_allclose(measured, order, atol=0.12)


@pytest.mark.parametrize("method", METHODS)
def test_closed_form_within_the_stated_error(method: str) -> None:
    got = solve(Riccati(), 1.5, method=method, num_points=7)
    error = np.abs(got.theta[:, 0] - 0.5 / (1 - 0.5 * got.t)).max()
    assert error <= 2 * got.error_estimate
    assert got.error_estimate <= {"euler": 4e-3, "relu": 4e-3}.get(method, 1e-6)
    assert got.method == method
    assert len(got.t) == 8


@pytest.mark.parametrize("activation", ["linear", "tanh", "square"])
def test_methods_agree(activation: str) -> None:
    field = flow(activation, FeedbackAlignment(seed=1))
    by_method = {m: solve(field, 1.0, method=m, num_points=4) for m in ("dop853", "rk4", "gauss-legendre")}
    for other in ("rk4", "gauss-legendre"):
        assert np.abs(by_method[other].theta - by_method["dop853"].theta).max() < 1e-7


def laws(field: Field, theta: Floats, rule: str) -> Floats:
    W, b = field.network.unpack(theta)
    own = 0.5 * np.sum(W[0] ** 2, axis=-1) + (0 if b is None else 0.5 * b[0] ** 2)
    k = field.network.sigmas[0].degree or 1
    B = field.states[1].get("B")
    psi = 0.5 * W[1] ** 2 if rule == "bp" else B * W[1]
    return own - k * psi.sum(axis=-2)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rule", ["bp", "fa"])
@pytest.mark.parametrize("activation", ["linear", "square"])
def test_gauss_legendre_keeps_the_neuron_law_to_rounding_at_a_coarse_step(
    activation: str, rule: str, bias: bool
) -> None:
    field = flow(activation, Backprop() if rule == "bp" else FeedbackAlignment(seed=1), bias=bias)
    step = 0.1 if activation == "linear" else 0.02
    coarse = solve(field, 4.0, method="gauss-legendre", step=step, num_points=40, check=False)
    fine = solve(field, 4.0, num_points=40)
    q = laws(field, coarse.theta, rule)
    assert np.abs(coarse.theta - fine.theta).max() > 1e-8  # the trajectory is off by the method's own error …
    assert np.abs(q - q[0]).max() < 5e-15 * max(1, np.abs(coarse.theta).max() ** 2)  # … the law is not
    q_rk4 = laws(field, solve(field, 4.0, method="rk4", step=step, num_points=40, check=False).theta, rule)
    assert np.abs(q_rk4 - q_rk4[0]).max() > 1e-10


def test_tanh_has_no_such_law() -> None:
    field = flow("tanh", FeedbackAlignment(seed=1))
    q = laws(field, solve(field, 4.0, method="gauss-legendre", step=0.1, check=False).theta, "fa")
    assert np.abs(q - q[0]).max() > 1e-3


def test_oscillator_radius_over_many_steps() -> None:
    got = solve(Ordinary(), 500.0, method="gauss-legendre", step=0.25, num_points=50, check=False)
    assert np.abs(np.sum(got.theta**2, axis=1) - 1).max() < 1e-14


@pytest.mark.parametrize("seed", range(3))
def test_relu_does_not_stall_and_states_its_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    net = Network.random((10, 20, 1), activation="relu", init_scale=(0.2, 1.0), seed=rng)
    X, Y = rng.standard_normal((8, 10)), rng.standard_normal(8)
    field = Field(net, FeedbackAlignment(init="aligned"), X, Y)
    got = solve(field, 0.5, num_points=10)
    assert got.method == "relu"
    reference = solve(field, 0.5, num_points=10, step=got.step / 8, check=False)
    assert np.abs(got.theta - reference.theta).max() <= 3 * got.error_estimate
    assert got.error_estimate < 1e-2
    q = laws(field, got.theta, "fa")
    assert np.abs(q - q[0]).max() < 20 * got.error_estimate + 1e-12


def test_early_stop_and_progress() -> None:
    field = flow("linear", Backprop())
    seen: list[tuple[float, float]] = []
    for method in ("dop853", "rk4"):
        seen.clear()
        got = solve(field, 400.0, method=method, tol=1e-3, num_points=400, progress=lambda t, e: seen.append((t, e)))
        assert got.stopped_early
        assert got.loss[-1] < 1e-3 <= got.loss[-2]
        assert len(got.t) == len(got.theta) == len(got.loss) < 401
        assert (got.t[-1], got.loss[-1]) in seen
        assert [t for t, _ in seen[: len(got.t) - 1]] == list(got.t[1:])


def test_record_times_are_kept() -> None:
    times = [0.1, 0.15, 0.9]
    for method in METHODS:
        got = solve(Riccati(), t_eval=times, method=method)
        np.testing.assert_array_equal(got.t, [0.0, *times])
    assert np.isnan(solve(Riccati(), t_eval=times, check=False).error_estimate)


@pytest.mark.parametrize("method", METHODS)
def test_blow_up_is_named(method: str) -> None:
    with pytest.raises(DivergenceError, match=r"(?s)(step|blows up|init_scale)"):
        solve(Riccati(), 8.0, method=method, **({} if method == "dop853" else {"step": 0.5}))


def test_descent_is_sgd_and_names_a_diverging_lr() -> None:
    field = flow("relu", FeedbackAlignment(seed=2))
    theta, steps = field.theta0, []
    for _ in range(7):
        theta = theta + 0.01 * field(theta)
    got = descend(field, 0.01, 7, record_every=3, observe=lambda s, th, d: steps.append((s, th.copy(), d.copy())))
    np.testing.assert_array_equal(got.final, theta)
    np.testing.assert_allclose(got.t, [0, 0.03, 0.06, 0.07], rtol=1e-15)
    np.testing.assert_array_equal(steps[3][1], got.theta[1])
    assert len(steps) == 7
    with pytest.raises(DivergenceError, match="lr 50"):
        descend(field, 50.0, 2000)


@pytest.mark.parametrize("activation", ["linear", "relu", "square"])
def test_drift_of_descent_is_exactly_the_ledger(activation: str) -> None:
    """Feedback alignment: q(t) − q(0) = +½ Σ ‖Δ‖² of the producer, weights and biases, to rounding."""
    field = flow(activation, FeedbackAlignment(seed=2))
    ledger = np.zeros(6)

    def observe(step: int, theta: Floats, delta: Floats) -> None:
        W, b = field.network.unpack(delta)
        assert b is not None
        ledger[:] += 0.5 * np.sum(W[0] ** 2, axis=1) + 0.5 * b[0] ** 2

    got = descend(field, 0.005, 2000, record_every=2000, observe=observe)
    q = laws(field, got.theta, "fa")
    assert np.abs(ledger).max() > 1e-5
    assert np.abs(q[-1] - q[0] - ledger).max() < 1e-13  # rounding of 2000 steps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"t_end": 1.0, "method": "magic"}, "dop853, gauss-legendre, rk4, euler, relu"),
        ({"t_end": -1.0}, "t_end"),
        ({}, "either t_end or t_eval"),
        ({"t_eval": [0.2, 0.1]}, "increasing"),
        ({"t_eval": [-1.0, 1.0]}, "increasing"),
        ({"t_end": 1.0, "step": 0.0}, "step"),
        ({"t_end": 1.0, "rtol": 2.0}, "rtol"),
        ({"t_end": 1.0, "tol": -1.0}, "tol"),
    ],
)
def test_wrong_settings_are_named_by_solve(settings, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        solve(Riccati(), **settings)


def test_wrong_settings_are_named_by_descend() -> None:
    with pytest.raises(SettingError, match="lr > 0"):
        descend(Riccati(), 0.0, 3)
