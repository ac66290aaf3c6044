"""Charges under decay and momentum: recursions against exact arithmetic, the oscillator against its equation."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from lawful.errors import SettingError
from lawful.experiments.paper import SilentProgress
from lawful.experiments.papers import load_paper
from lawful.experiments.papers.kunin2021.charges import Record
from lawful.experiments.papers.kunin2021.predictions import integral, oscillator, recursion
from lawful.experiments.papers.kunin2021.settings import Settings

SMALL = Settings(n=64, batch=32, steps=200, seeds=1)


@pytest.mark.parametrize("change", [{"n": 1}, {"lr": 0.0}, {"momentum": 1.0}, {"decay": float("inf")}])
def test_settings_refuse_in_one_line(change):
    with pytest.raises(SettingError) as caught:
        replace(SMALL, **change).validate()
    assert next(iter(change)) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("beta", [Fraction(0), Fraction(9, 10)])
def test_the_recursion_of_a_rescale_charge_in_exact_arithmetic(beta):
    """Two scalars, output w₂ w₁ and error e: g = (e w₂, e w₁), q = ½w₁² − ½w₂², no solver and no library."""
    lr, decay = Fraction(1, 10), Fraction(1, 5)
    w, v = [Fraction(3, 2), Fraction(1, 3)], [Fraction(0), Fraction(0)]
    q, d = [], []
    for step in range(8):
        q.append((w[0] ** 2 - w[1] ** 2) / 2)
        e = w[0] * w[1] - step % 3
        g = (e * w[1], e * w[0])
        v = [beta * v[i] + g[i] + decay * w[i] for i in range(2)]
        delta = [-lr * v[i] for i in range(2)]
        d.append((delta[0] ** 2 - delta[1] ** 2) / 2)
        w = [w[i] + delta[i] for i in range(2)]
    q.append((w[0] ** 2 - w[1] ** 2) / 2)
    columns = [np.array([[float(x)] for x in values]) for values in (q, d)]
    record = Record(0.1 * np.arange(9), *columns)
    predicted = recursion(record, 2, lr=0.1, decay=0.2, momentum=float(beta))
    np.testing.assert_allclose(predicted, record.q, rtol=1e-12)


def test_the_integral_form_without_gradients_is_the_exponential():
    t = np.linspace(0, 2, 21)
    q = np.array([3.0, -1.0]) * (1 - 0.1 * 0.5) ** (2 * np.arange(21))[:, None]
    d = (0.1 * 0.5) ** 2 * q[:-1]
    found = integral(Record(t, q, d), 2, decay=0.5)
    np.testing.assert_allclose(found, np.exp(-2 * 0.5 * t)[:, None] * q[0], rtol=1e-12)


@pytest.mark.parametrize("beta", [0.2, 0.9, 0.99])
def test_the_oscillator_solves_its_equation(beta):
    lr, decay = 0.1, 0.3
    t = np.linspace(0, 20, 30)
    mass, friction = 0.5 * lr * (1 + beta), 1 - beta
    run = solve_ivp(
        lambda _, s: [s[1], -(friction * s[1] + decay * s[0]) / mass],
        (0, 20),
        [1.5, 0.0],
        t_eval=t,
        rtol=1e-10,
        atol=1e-12,
        method="DOP853",
    )
    found = oscillator(t, np.array([1.5]), lr=lr, decay=decay, momentum=beta)
    np.testing.assert_allclose(found[:, 0], run.y[0], atol=1e-8)


@pytest.mark.parametrize("stage", ["decay", "momentum", "feedback"])
def test_exact_claims_hold_at_another_seed(stage):
    found = load_paper("kunin2021").stages[stage](SMALL, 5, SilentProgress())
    exact = [claim for claim in found.claims if claim.id.endswith(".exact")]
    assert exact and all(claim.ok for claim in exact)
