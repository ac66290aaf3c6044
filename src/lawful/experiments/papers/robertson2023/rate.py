"""Theorem 5.2's rate, computed before training, against the measured one; and when its hypothesis can hold at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lawful.experiments.claims import Claim
from lawful.experiments.paper import Progress
from lawful.experiments.papers.robertson2023.laboratory import aligned_field, generator
from lawful.experiments.papers.robertson2023.minimum_norm import HORIZON, Regime, as_stated, problem_and_network
from lawful.experiments.papers.robertson2023.settings import Settings
from lawful.experiments.papers.robertson2023.shorthand import spread
from lawful.experiments.records import Figure, Line, Panel, Section
from lawful.flows.activations import Floats
from lawful.flows.rates import Certificate, MeasuredRate, certify, measured_rate
from lawful.flows.solve import solve

_NOISE = 1e-6
"""Relative error below which the integrator's tolerance, not the flow, would be measured."""

_DRAWS = 2000
_SIGMAS = 4.0


@dataclass(frozen=True)
class Rate:
    """One flow's error norm beside its certificate.

    Attributes:
        t: times (T,).
        error: ‖e(t)‖ / ‖e(0)‖, (T,).
        certificate: c and κ c λ_min, known before training.
        measured: the rate of the flow.
        finished: whether the error fell below the noise in the time allowed.
    """

    t: Floats
    error: Floats
    certificate: Certificate
    measured: MeasuredRate
    finished: bool


def rate(regime: Regime, settings: Settings, seed: int, number: int) -> Rate:
    """Certify, then follow the flow until its error is below the noise."""
    problem, network = problem_and_network(regime, settings, seed, number)
    field = aligned_field(network, problem)
    certificate = certify(network, field.states, problem.X, problem.Y, kappa=field.kappa)
    typical = field.kappa * certificate.lambda_min * float((network.weights[1] ** 2).sum())
    fastest = field.kappa * float(np.linalg.norm(problem.X, 2) ** 2 * sum((W**2).sum() for W in network.weights))
    horizon = min(60 / typical, HORIZON / fastest)
    run = solve(field, horizon, num_points=1000, check=False, tol=_NOISE**2 * field.loss(field.theta0))
    error = np.sqrt(run.loss / run.loss[0])
    return Rate(run.t, error, certificate, measured_rate(run.t, run.loss, noise=_NOISE), run.stopped_early)


def stage(settings: Settings, seed: int, progress: Progress) -> Section:
    """Certified against measured rate for n < d and n > d, and the odds of c > 0."""
    s, target = settings.init_scale, settings.target_scale
    other = 2 * settings.d if settings.n < settings.d else max(1, 2 * settings.d // 5)
    regimes = {
        "stated": Regime(f"n = {settings.n}, scale a std", settings.n, s, target, as_stated),
        "variance": Regime(f"n = {settings.n}, scale a variance", settings.n, s**0.5, target, as_stated),
        "other": Regime(f"n = {other}, scale a std", other, s, target, as_stated),
    }
    scalar = settings.outputs == 1
    runs: dict[str, list[Rate]] = {}
    for at, (id, regime) in enumerate(regimes.items() if scalar else ()):
        progress.update(at / len(regimes), regime.label)
        runs[id] = [rate(regime, settings, seed, number) for number in range(settings.seeds)]
    claims = [claim for id, group in runs.items() for claim in _rate_claims(id, regimes[id], group)]
    crossings = {reading: crossing(std, settings.width, seed) for reading, std in (("std", s), ("variance", s**0.5))}
    for reading, found in crossings.items():
        claims.append(
            Claim.close(
                f"positivity.{reading}",
                "Section 6",
                f"Scale {s:g} read as a {'standard deviation' if reading == 'std' else 'variance'}: the mean of "
                "<W_2(0),B_2> - 1/2 |W_1(0)|^2 changes sign at d = 2 / Var, at any width.",
                found.d,
                found.expected,
                abs=float(f"{found.tolerance:.2g}"),
            )
        )
    figures = [_positivity_figure(crossings)]
    return Section(
        id="rate",
        title="Theorem 5.2: the certified rate, and when its hypothesis holds",
        paper_says=(
            "If $\\langle W_2(0),B_2\\rangle>\\frac12\\|W_1(0)\\|^2$ the error of the two-layer linear network "
            "with a scalar "
            "output converges to zero exponentially."
        ),
        measured=_measured(settings, regimes, runs, crossings),
        equations=(
            r"\|e(t)\|\le e^{-\kappa c\lambda_{\min}t}\|e(0)\|,\qquad c=b\cdot w_2(0)-\tfrac12\|W_1(0)\|^2",
            r"\lambda_{\min}=\lambda_{\min}(XX^T)\ (n\le d)\quad"
            r"\text{or}\quad\lambda_{\min}(X^TX)\ (n>d,\ y\in\mathrm{range}\,X)",
        ),
        claims=claims,
        figures=[_rate_figure(regimes, runs), *figures] if scalar else figures,
        arrays={
            f"{id}.{name}": np.array([get(r) for r in group])
            for id, group in runs.items()
            for name, get in _STORED.items()
        },
    )


_STORED: dict[str, Callable[[Rate], float]] = {
    "c": lambda r: r.certificate.c,
    "certified": lambda r: r.certificate.rate,
    "slowest": lambda r: r.measured.slowest,
    "final": lambda r: r.measured.final,
}


def _rate_claims(id: str, regime: Regime, group: list[Rate]) -> list[Claim]:
    proved = [r for r in group if r.certificate.holds]
    claims = []
    for which, statement in (
        ("slowest", "at every time the error is below exp(-rate t) with the certified rate"),
        ("final", "the asymptotic rate is at least the certified one"),
    ):
        if proved:
            claims.append(
                Claim.at_least(
                    f"rate.{id}.{which}",
                    "Theorem 5.2",
                    f"{regime.label}: {statement}; smallest measured / certified rate over the {len(proved)} "
                    f"seeds with "
                    "c > 0.",
                    min(getattr(r.measured, which) / r.certificate.rate for r in proved),
                    1.0,
                )
            )
    unproved = [r for r in group if not r.certificate.holds]
    if unproved and all(r.finished for r in unproved):
        claims.append(
            Claim.at_most(
                f"rate.{id}.unproved",
                "Theorem 5.2",
                f"{regime.label}: the hypothesis c > 0 fails for {len(unproved)} of {len(group)} seeds, and the flow "
                "converges all the same; largest final relative error.",
                max(float(r.error[-1]) for r in unproved),
                _NOISE,
            )
        )
    return claims


@dataclass(frozen=True)
class Crossing:
    """Where the mean of c changes sign.

    Attributes:
        dims: input dimensions tried.
        mean: the mean of c per hidden neuron.
        positive: the share of draws with c > 0.
        d: the measured crossing, and ``tolerance``, four of its standard errors.
        expected: 2/Var.
    """

    dims: Floats
    mean: Floats
    positive: Floats
    d: float
    tolerance: float
    expected: float


def crossing(std: float, width: int, seed: int) -> Crossing:
    """Draw ‖W_2‖² ~ χ²(width) and ‖W_1‖² ~ std² χ²(width · d), and fit the line mean(c) in d.

    E c / width = 1 − d·std²/2, so that c > 0 on average for d < 2/std², whatever the width.
    """
    rng = generator(seed, 0, 3)
    expected = 2 / std**2
    dims = expected * np.linspace(0.25, 1.75, 13)
    c = rng.chisquare(width, (_DRAWS, 13)) - 0.5 * std**2 * rng.chisquare(width * dims, (_DRAWS, 13))
    mean = c.mean(0) / width
    slope, intercept = np.polyfit(dims, mean, 1)
    spread_of_mean = np.sqrt((2 + dims * std**4 / 2).mean() / width / _DRAWS / len(dims))
    return Crossing(
        dims, mean, (c > 0).mean(0), float(-intercept / slope), _SIGMAS * spread_of_mean / (0.5 * std**2), expected
    )


def _measured(
    settings: Settings, regimes: dict[str, Regime], runs: dict[str, list[Rate]], crossings: dict[str, Crossing]
) -> str:
    parts = []
    for id, group in runs.items():
        c = spread([r.certificate.c for r in group])
        if all(r.certificate.holds for r in group):
            quotient = spread([r.measured.final / r.certificate.rate for r in group])
            parts.append(f"{regimes[id].label}: c = {c}; measured rate / certified rate = {quotient}.")
        else:
            parts.append(
                f"{regimes[id].label}: c = {c}, so the theorem is silent; final relative error "
                f"{max(float(r.error[-1]) for r in group):.0e}."
            )
    if not runs:
        parts.append("The theorem is about a scalar output; with outputs > 1 there is no certified rate here.")
    std, variance = crossings["std"], crossings["variance"]
    parts.append(
        f"On average $c>0$ needs $d<{std.expected:.4g}$ when the scale {settings.init_scale:g} is a standard deviation "
        f"(measured {std.d:.4g}), but $d<{variance.expected:.4g}$ when it is a variance (measured "
        f"{variance.d:.4g}); the "
        f"width does not matter. Here d = {settings.d}."
    )
    return "\n\n".join(parts)


def _rate_figure(regimes: dict[str, Regime], runs: dict[str, list[Rate]]) -> Figure:
    panels = []
    for id, group in runs.items():
        lines: list[Line] = []
        for number, r in enumerate(group[:3]):
            lines.append(Line("measured" if number == 0 else "", r.t, r.error, color=number))
            if r.certificate.holds:
                label = "certified before training" if number == 0 else ""
                lines.append(Line(label, r.t, np.exp(-r.certificate.rate * r.t), style="--", color=number))
        panels.append(Panel(regimes[id].label, "time", "‖e(t)‖ / ‖e(0)‖", tuple(lines), yscale="log"))
    return Figure(
        "rate",
        "The error and the rate known before training",
        "Three seeds in three colours; dashed: the certified bound, drawn only where its hypothesis c > 0 holds.",
        panels,
    )


def _positivity_figure(crossings: dict[str, Crossing]) -> Figure:
    titles = {"std": "scale a standard deviation", "variance": "scale a variance"}
    panels = [
        Panel(
            titles[reading],
            "input dimension d",
            "share of draws / mean",
            (
                Line("share of draws with c > 0", found.dims, found.positive, style="o-"),
                Line("mean of c per neuron", found.dims, found.mean, style="s-"),
                Line("1 − d·Var/2", found.dims, 1 - found.dims / found.expected, style=":"),
            ),
        )
        for reading, found in crossings.items()
    ]
    return Figure(
        "positivity",
        "When Theorem 5.2's hypothesis holds at the stated initialisation",
        f"{_DRAWS} draws of the initial weights per point, at the width set.",
        panels,
    )
