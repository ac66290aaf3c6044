"""Balanced layers: the measured quantities against formulas written out, the claims, what settings refuse."""

from dataclasses import replace

import numpy as np
import pytest

from lawful.errors import DivergenceError, SettingError
from lawful.experiments.paper import SilentProgress
from lawful.experiments.papers import load_paper
from lawful.experiments.papers.du2018.factorisation import factorise
from lawful.experiments.papers.du2018.networks import gaps, problem
from lawful.experiments.papers.du2018.settings import Settings
from lawful.experiments.papers.du2018.steps import descent
from lawful.flows.network import Network

SMALL = Settings(n=8, d=4, width=5, depth=3, steps=150, factor_steps=2000, size=6, seeds=2)


@pytest.mark.parametrize("change", [{"n": 0}, {"depth": 1}, {"lr": 0.0}, {"small": float("nan")}, {"seeds": 0}])
def test_settings_refuse_in_one_line(change):
    with pytest.raises(SettingError) as caught:
        replace(SMALL, **change).validate()
    assert next(iter(change)) in str(caught.value) and "\n" not in str(caught.value)


def test_gaps_are_the_matrices_of_theorem_2_2():
    W = [np.array([[1.0, 2.0], [0.0, 3.0]]), np.array([[4.0, 5.0]])]
    (gap,) = gaps(Network.make(W), Network.make(W).theta()[None])
    # W₁W₁ᵀ = [[5, 6], [6, 9]], W₂ᵀW₂ = [[16, 20], [20, 25]]
    np.testing.assert_array_equal(gap[0], [[-11.0, -14.0], [-14.0, -16.0]])


def test_descent_against_a_plain_loop():
    field = problem(replace(SMALL, depth=2), 0, 0, "relu")
    run = descent(field, 0.05, 20)
    W1, W2 = (w.copy() for w in field.network.weights)
    size = max((W1**2).sum(), (W2**2).sum())
    start = (W1**2).sum() - (W2**2).sum()
    for change in run.change[0]:
        assert change == pytest.approx(((W1**2).sum() - (W2**2).sum() - start) / size, abs=1e-13)
        h = field.X @ W1.T
        e = (np.maximum(h, 0) @ W2.T - field.Y) * field.kappa
        W1, W2 = W1 - 0.05 * ((e @ W2) * (h > 0)).T @ field.X, W2 - 0.05 * e.T @ np.maximum(h, 0)
    assert run.remainder < 1e-13


def test_a_factorisation_step_against_the_formula():
    rng = np.random.default_rng(0)
    M, U, V = rng.standard_normal((3, 4)), rng.standard_normal((3, 2)), rng.standard_normal((4, 2))
    run = factorise(M, U, V, 0.1, 1)
    E = U @ V.T - M
    U1, V1 = U - 0.1 * E @ V, V - 0.1 * E.T @ U
    assert run.loss[1] == pytest.approx(0.5 * np.linalg.norm(U1 @ V1.T - M) ** 2, rel=1e-12)
    assert run.gap[1] == pytest.approx(np.linalg.norm(U1.T @ U1 - V1.T @ V1), rel=1e-12)


@pytest.mark.parametrize("stage", ["flow", "steps", "factorisation"])
def test_every_claim_holds_at_another_seed(stage):
    found = load_paper("du2018").stages[stage](SMALL, 3, SilentProgress())
    assert found.claims and not [claim for claim in found.claims if not claim.ok]


def test_a_learning_rate_that_diverges_is_named():
    with pytest.raises(DivergenceError, match="smaller lr"):
        load_paper("du2018").stages["steps"](replace(SMALL, lr=1e3), 0, SilentProgress())
