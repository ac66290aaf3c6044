"""The reproduction: its quantities against formulas written out, its claims under changed settings, its refusals."""

from dataclasses import replace

import numpy as np
import pytest

from lawful.errors import DivergenceError, SettingError
from lawful.experiments.claims import claims_json
from lawful.experiments.paper import SilentProgress
from lawful.experiments.papers import load_paper
from lawful.experiments.papers.robertson2023 import corollary, minimum_norm, rate
from lawful.experiments.papers.robertson2023.laboratory import aligned_field, data, descent, laws, stated_network
from lawful.experiments.papers.robertson2023.law import slope
from lawful.experiments.papers.robertson2023.settings import QUICK, Settings
from lawful.experiments.papers.robertson2023.shorthand import decade, negligible, spread

SMALL = Settings(n=4, d=12, width=8, steps=150, seeds=2, digits_epochs=1)


def section(stage, settings=SMALL, seed=0):
    return load_paper("robertson2023").stages[stage](settings, seed, SilentProgress())


def by_id(found):
    return {claim.id: claim for claim in found.claims}


@pytest.mark.parametrize(
    "change",
    [
        {"n": 0},
        {"d": -1},
        {"width": 0},
        {"depth": 1},
        {"outputs": 0},
        {"activation": "gelu"},
        {"init_scale": 0.0},
        {"target_scale": float("nan")},
        {"lr": float("inf")},
        {"steps": 1},
        {"seeds": 0},
        {"n": 2.5},
        {"n": True},
        {"lr": "fast"},
    ],
)
def test_settings_refuse_in_one_line(change):
    with pytest.raises(SettingError) as caught:
        Settings(**change).validate()
    assert next(iter(change)) in str(caught.value) and "\n" not in str(caught.value)


def test_settings_accept_defaults_and_quick():
    Settings().validate()
    replace(Settings(), **QUICK).validate()


@pytest.mark.parametrize(("activation", "k"), [("linear", 1), ("relu", 1), ("square", 2)])
def test_descent_and_ledger_against_a_plain_loop(activation, k):
    settings = replace(SMALL, steps=20, lr=1e-3)
    problem = data(settings, 0, 0)
    network = stated_network(settings, 0, 0, activation)
    field = aligned_field(network, problem)
    run = descent(field, settings.lr, settings.steps, 1)
    quantities = laws(field, run.trajectory.theta)
    sigma = {"linear": lambda h: h, "relu": lambda h: np.maximum(h, 0), "square": lambda h: np.maximum(h, 0) ** 2}
    prime = {"linear": np.ones_like, "relu": lambda h: 1.0 * (h > 0), "square": lambda h: 2 * np.maximum(h, 0)}
    W1, w2 = (w.copy() for w in network.weights)
    b, ledger = w2.copy(), np.zeros(settings.width)
    for step in range(settings.steps + 1):
        expected = k * (w2 * b)[0] - 0.5 * (W1**2).sum(1)
        np.testing.assert_allclose(quantities.neurons[0][step], expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(run.ledger[0][step], ledger, rtol=0, atol=1e-13)
        h = problem.X @ W1.T
        e = (sigma[activation](h) @ w2.T - problem.Y) / settings.n
        dW1 = -settings.lr * ((e @ b) * prime[activation](h)).T @ problem.X
        w2, W1 = w2 - settings.lr * e.T @ sigma[activation](h), W1 + dW1
        ledger = ledger + 0.5 * (dW1**2).sum(1)


def test_a_diverging_step_is_refused_clearly():
    with pytest.raises(DivergenceError, match="smaller lr"):
        section("figures", replace(SMALL, lr=1.0))


@pytest.mark.parametrize("stage", ["figures", "law", "depth", "corollary", "minnorm", "rate"])
def test_every_claim_holds_and_is_reproducible(stage):
    first, again = section(stage), section(stage)
    assert [c.id for c in first.claims if not c.ok] == []
    assert claims_json(first.claims) == claims_json(again.claims)
    assert len(by_id(first)) == len(first.claims) > 0
    assert first.figures and first.paper_says and first.measured


@pytest.mark.parametrize(
    "change",
    [
        {"activation": "tanh"},
        {"activation": "leaky_relu", "outputs": 3, "depth": 3},
        {"activation": "linear", "n": 40},
        {"n": 1, "d": 1, "width": 1, "steps": 8, "seeds": 1},
    ],
)
@pytest.mark.parametrize("stage", ["figures", "law", "corollary", "minnorm", "rate"])
def test_claims_make_sense_under_other_settings(stage, change):
    assert [c.id for c in section(stage, replace(SMALL, **change)).claims if not c.ok] == []


def test_tanh_is_reported_as_a_violation():
    settings = replace(SMALL, activation="tanh")
    found = by_id(section("figures", settings)) | by_id(section("law", settings))
    assert found["figure1.tanh.violation"].measured > 1e-6
    assert found["law.tanh.no-ledger"].measured > 1e-6
    assert "figure1.tanh.neuron" not in found and "law.tanh.ledger-neuron" not in found


def test_stated_initialisation_corrects_the_paper_and_the_formula_is_independent():
    found = by_id(section("minnorm"))
    assert found["minnorm.stated.distance"].verdict == "corrects-the-paper"
    assert found["lemma.counterexample.distance"].verdict == "corrects-the-paper"
    # the limit by plain gradient descent on all weights, with neither the reduced flow nor lawful's field
    regime = minimum_norm.Regime("", SMALL.n, SMALL.init_scale, 1.0, minimum_norm.as_stated)
    problem, network = minimum_norm.problem_and_network(regime, SMALL, 0, 0)
    W1, w2 = (w.copy() for w in network.weights)
    b = w2.copy()
    for _ in range(60_000):
        e = (problem.X @ W1.T @ w2.T - problem.Y) / SMALL.n
        if np.abs(e).max() < 1e-13:
            break
        W1, w2 = W1 - 1e-2 * (e @ b).T @ problem.X, w2 - 1e-2 * e.T @ (problem.X @ W1.T)
    distance = np.linalg.norm((w2 @ W1).T - problem.minimum_norm) / np.linalg.norm(problem.minimum_norm)
    assert minimum_norm.outcome(regime, SMALL, 0, 0).distance == pytest.approx(distance, rel=0.05)  # lr is finite


def test_with_as_many_samples_as_inputs_nothing_is_said_about_minimum_norm():
    ids = by_id(section("minnorm", replace(SMALL, n=40)))
    assert set(ids) == {"minnorm.unique.distance", "minnorm.reduced"}


def test_counterexample_satisfies_the_lemma_and_not_more():
    regime = minimum_norm.Regime("", SMALL.n, 0.1, 1.0, minimum_norm.only_product_in_span)
    problem, network = minimum_norm.problem_and_network(regime, SMALL, 0, 0)
    W1, W2 = network.weights
    assert np.linalg.norm(problem.null_projector @ (W2 @ W1).T) < 1e-12
    assert np.linalg.norm(W1 @ problem.null_projector) > 0.1


def test_sharp_example_follows_its_closed_form():
    field = corollary.sharp_field(7, 2.4)
    (W1, W2), _ = field.network.unpack(field.theta0)
    (dW1, dW2), _ = field.network.unpack(field(field.theta0))
    b = field.states[1]["B"][0]
    u, alignment = float(b @ W1[:, 0]), float(W2[0] @ b)
    assert (u, alignment) == pytest.approx((-(2.4**0.5), 1.0))
    # ⟨w_2, b⟩' = u u' along the flow
    assert float(dW2[0] @ b) == pytest.approx(u * float(b @ dW1[:, 0]))


def test_crossing_is_at_two_over_variance():
    found = rate.crossing(0.2, 40, 1)
    assert found.expected == pytest.approx(50.0)
    assert abs(found.d - 50.0) <= found.tolerance < 1.0


def test_more_outputs_leave_the_certified_rate_out():
    ids = by_id(section("rate", replace(SMALL, outputs=2)))
    assert set(ids) == {"positivity.std", "positivity.variance"}


def test_digits_laws_hold_and_accuracies_are_measured():
    found = section("digits", replace(SMALL, seeds=1, digits_epochs=2))
    assert [c.id for c in found.claims if not c.ok] == []
    assert found.arrays["ten.fa.accuracy"].shape == (1, 3)


def test_slope_and_shorthand():
    x = np.array([4e-3, 2e-3, 1e-3])
    assert slope(x, 3 * x * (1 + 20 * x)) == pytest.approx(1.0, abs=0.01)
    assert slope(x, 5 * x**2) == pytest.approx(2.0)
    assert decade(3.1e-15) == 1e-14 and decade(0.0) == 0.0
    assert negligible("a.b", "", "", 2e-13, 3e-13).measured == 3e-13
    assert negligible("a.b", "", "", 2e-3, 1e-12).verdict == "fails"
    assert negligible("a.b", "", "", float("nan"), 1e-12).verdict == "fails"
    assert spread([0.5, 0.512]) == "0.5–0.51"
