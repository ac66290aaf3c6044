"""Theorem 5.2's conclusion: which initialisations reach the minimum-norm solution, and how far off the others end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lawful.data.teacher import Regression, gaussian_teacher
from lawful.experiments.claims import Claim
from lawful.experiments.paper import Progress
from lawful.experiments.papers.robertson2023.laboratory import aligned_field, generator
from lawful.experiments.papers.robertson2023.settings import Settings
from lawful.experiments.papers.robertson2023.shorthand import negligible, spread
from lawful.experiments.records import Figure, Line, Panel, Section
from lawful.flows.activations import Floats
from lawful.flows.field import Field
from lawful.flows.network import Network
from lawful.flows.reduced import ReducedFlow
from lawful.flows.solve import solve
from lawful.rules.feedback_alignment import FeedbackAlignment

THREE_DIGITS = 1e-3
"""The paper reports agreement to three significant digits."""

REACHED = 1e-10
"""Relative distance that counts as reaching the minimum norm: the flow is followed to ‖e‖ <= 3e-13 ‖e(0)‖."""

_SMALL = 3e-13
HORIZON = 1e4
"""Flow time allowed, in units of the fastest time scale: what a few seconds of integration can reach."""


def stage(settings: Settings, seed: int, progress: Progress) -> Section:
    """Three regimes: the stated initialisation with n < d, W_1(0) in the row space of X, and n >= d."""
    regimes = _regimes(settings)
    outcomes: dict[str, list[Outcome]] = {}
    for at, (id, regime) in enumerate(regimes.items()):
        progress.update(at / len(regimes), regime.label)
        outcomes[id] = [outcome(regime, settings, seed, number) for number in range(settings.seeds)]
    reached = {id: [o for o in group if o.converged] for id, group in outcomes.items()}
    agreement = _agreement(settings, seed)
    return Section(
        id="minnorm",
        title="Theorem 5.2: who reaches the minimum-norm solution",
        paper_says=(
            "An overparameterised two-layer linear network trained by feedback alignment converges to the minimum-norm "
            "solution if $w(0)\\in\\mathrm{span}(X^T)$; in Section 6, with $W_1\\sim N(0,1/10)$, $W_2\\sim N(0,1)$ and "
            "$B_2=W_2(0)$, the learned $w$ equals $X^+y$ to three significant digits."
        ),
        measured=_measured(settings, regimes, outcomes, reached),
        equations=(
            r"\frac{\|w(\infty)-X^+y\|}{\|X^+y\|}=\frac{\|P_\perp W_1(0)^{T}w_2(\infty)\|}{\|X^+y\|},"
            r"\qquad P_\perp=I-X^+X",
            r"w(\infty)=X^+y\iff P_\perp W_1(0)^{T}w_2(\infty)=0",
        ),
        claims=_claims(settings, reached, agreement),
        figures=(_figure(regimes, reached),) if any(reached.values()) else (),
        arrays={
            f"{id}.{name}": np.array([getattr(o, name) for o in group])
            for id, group in outcomes.items()
            for name in ("distance", "predicted", "residual")
        },
    )


@dataclass(frozen=True)
class Regime:
    """An initialisation and a problem.

    Attributes:
        label: what a figure calls it.
        n: samples.
        std: standard deviation of W_1(0).
        target: norm of w*, or None for w* ~ N(0, 1).
        prepare: what is done to W_1(0) before training, given (W_1, W_2, problem).
    """

    label: str
    n: int
    std: float
    target: float | None
    prepare: Callable[[Floats, Floats, Regression], Floats]


def as_stated(W1: Floats, W2: Floats, problem: Regression) -> Floats:
    """W_1(0) as drawn."""
    return W1


def in_row_space(W1: Floats, W2: Floats, problem: Regression) -> Floats:
    """The rows of W_1(0) projected on the row space of X."""
    return W1 - W1 @ problem.null_projector


def at_zero(W1: Floats, W2: Floats, problem: Regression) -> Floats:
    """W_1(0) = 0."""
    return np.zeros_like(W1)


def only_product_in_span(W1: Floats, W2: Floats, problem: Regression) -> Floats:
    """Lemma A.1's hypothesis alone: P_⊥W_1ᵀ loses its part along w_2, so that w(0) = W_1ᵀw_2 is in span(Xᵀ)."""
    outside = W1 @ problem.null_projector
    along = np.linalg.pinv(W2) @ W2  # projector on the rows of W_2
    return W1 - along @ outside


def _regimes(settings: Settings) -> dict[str, Regime]:
    s, target, n, d = settings.init_scale, settings.target_scale, settings.n, settings.d
    unique = {"unique": Regime("n ≥ d", n if n >= d else 2 * d, s, target, as_stated)}
    if n >= d:
        return unique
    return {
        "stated": Regime("1/10 a std", n, s, target, as_stated),
        "variance": Regime("1/10 a variance", n, s**0.5, target, as_stated),
        "stated-gaussian": Regime("std, w* ~ N(0,1)", n, s, None, as_stated),
        "variance-gaussian": Regime("variance, w* ~ N(0,1)", n, s**0.5, None, as_stated),
        "product": Regime("w(0) in span", n, s, target, only_product_in_span),
        "rowspace": Regime("W₁(0) in row space", n, s, target, in_row_space),
        "zero": Regime("W₁(0) = 0", n, s, target, at_zero),
        **unique,
    }


@dataclass(frozen=True)
class Outcome:
    """Where one flow ended.

    Attributes:
        distance: ‖w(∞) − X⁺y‖ / ‖X⁺y‖.
        predicted: ‖P_⊥W_1(0)ᵀw_2(∞)‖ / ‖X⁺y‖.
        start: ‖P_⊥w(0)‖ / ‖X⁺y‖: zero when w(0) lies in span(Xᵀ).
        residual: ‖e(end)‖ / ‖e(0)‖.
    """

    distance: float
    predicted: float
    start: float
    residual: float

    @property
    def converged(self) -> bool:
        """Whether the flow reached its limit in the time allowed."""
        return self.residual <= 10 * _SMALL


def problem_and_network(regime: Regime, settings: Settings, seed: int, number: int) -> tuple[Regression, Network]:
    """The regime's data and two-layer linear network."""
    problem = gaussian_teacher(
        regime.n, settings.d, settings.outputs, scale=regime.target, rng=generator(seed, number, 0)
    )
    rng = generator(seed, number, 1)
    W1 = regime.std * rng.standard_normal((settings.width, settings.d))
    W2 = rng.standard_normal((settings.outputs, settings.width))
    return problem, Network.make([regime.prepare(W1, W2, problem), W2])


def limit(flow: ReducedFlow, network: Network, problem: Regression) -> Network:
    """The network at the end of the exact reduced flow, followed to ‖e‖ <= 3e-13 ‖e(0)‖ or to the horizon."""
    speed = float(np.linalg.norm(problem.X, 2) ** 2 * sum(np.linalg.norm(W) ** 2 for W in network.weights)) * flow.kappa
    t_eval = np.geomspace(1 / speed, HORIZON / speed, 240)
    run = solve(flow, t_eval=t_eval, rtol=1e-12, atol=1e-16, tol=_SMALL**2 * flow.loss(flow.theta0), check=False)
    return flow.lift(run.final)


def outcome(regime: Regime, settings: Settings, seed: int, number: int) -> Outcome:
    """Follow the flow to its end and compare with X⁺y."""
    problem, network = problem_and_network(regime, settings, seed, number)
    flow = ReducedFlow(network, problem.X, problem.Y, rule=FeedbackAlignment(init="aligned"), kappa=1 / regime.n)
    W1, W2 = limit(flow, network, problem).weights
    star, away = problem.minimum_norm, problem.null_projector
    size = float(np.linalg.norm(star))
    start = network.weights[0]
    error, error0 = problem.X @ (W2 @ W1).T - problem.Y, network.forward(problem.X) - problem.Y
    return Outcome(
        distance=float(np.linalg.norm((W2 @ W1).T - star)) / size,
        predicted=float(np.linalg.norm(away @ (W2 @ start).T)) / size,
        start=float(np.linalg.norm(away @ (network.weights[1] @ start).T)) / size,
        residual=float(np.linalg.norm(error) / np.linalg.norm(error0)),
    )


def _agreement(settings: Settings, seed: int) -> float:
    """The exact reduced flow against integration of all weights, relative, at a time where learning is under way."""
    regime = next(iter(_regimes(settings).values()))
    problem, network = problem_and_network(regime, settings, seed, 0)
    field: Field = aligned_field(network, problem)
    flow = ReducedFlow(network, problem.X, problem.Y, rule=FeedbackAlignment(init="aligned"), kappa=field.kappa)
    speed = float(np.linalg.norm(problem.X, 2) ** 2 * np.linalg.norm(network.weights[1]) ** 2) * field.kappa
    full = solve(field, 10 / speed, num_points=1, rtol=1e-12, atol=1e-14, check=False).final
    short = flow.lift(solve(flow, 10 / speed, num_points=1, rtol=1e-12, atol=1e-14, check=False).final).theta()
    return float(np.abs(full - short).max() / np.abs(full).max())


def _claims(settings: Settings, reached: dict[str, list[Outcome]], agreement: float) -> list[Claim]:
    claims = []
    for id, reading in (("stated", "standard deviation"), ("variance", "variance")):
        if group := reached.get(id):
            claims.append(
                Claim.at_least(
                    f"minnorm.{id}.distance",
                    "Section 6",
                    f"Stated initialisation, scale read as a {reading}, n < d: the limit is not the minimum-norm "
                    "solution (smallest relative distance over seeds; three digits would be below 0.001).",
                    min(o.distance for o in group),
                    THREE_DIGITS,
                    corrects=True,
                )
            )
    stated = [o for id, group in reached.items() if id.startswith(("stated", "variance")) for o in group]
    if stated:
        claims.append(
            negligible(
                "minnorm.stated.formula",
                "Section 6",
                "That distance is |P_perp W_1(0)^T w_2(inf)| / |X^+ y|, in both readings and for both targets.",
                max(abs(o.distance / o.predicted - 1) for o in stated),
                1e-9,
            )
        )
    if group := reached.get("product"):
        claims += [
            negligible(
                "lemma.counterexample.hypothesis",
                "Lemma A.1",
                "Counterexample, its hypothesis: w(0) lies in the span of X^T (relative distance from it).",
                max(o.start for o in group),
                1e-12,
            ),
            Claim.at_least(
                "lemma.counterexample.distance",
                "Lemma A.1",
                "Counterexample, its limit: the minimum-norm solution is not reached though w(0) lies in span(X^T) "
                "(smallest relative distance over seeds); the hypothesis must be on the rows of W_1(0).",
                min(o.distance for o in group),
                THREE_DIGITS,
                corrects=True,
            ),
        ]
    sayings = {
        "rowspace": "With the rows of W_1(0) in the row space of X the limit is the minimum-norm solution.",
        "zero": "With W_1(0) = 0 the limit is the minimum-norm solution.",
        "unique": "With n >= d the solution is unique and every initialisation reaches it.",
    }
    for id, statement in sayings.items():
        if group := reached.get(id):
            claims.append(
                negligible(f"minnorm.{id}.distance", "Theorem 5.2", statement, max(o.distance for o in group), REACHED)
            )
    claims.append(
        negligible(
            "minnorm.reduced",
            "Section 6",
            "The exact reduced flow, which finds these limits, agrees with integrating all weights (relative).",
            agreement,
            1e-9,
        )
    )
    return claims


def _measured(
    settings: Settings,
    regimes: dict[str, Regime],
    outcomes: dict[str, list[Outcome]],
    reached: dict[str, list[Outcome]],
) -> str:
    parts = []
    if settings.n >= settings.d:
        parts.append(
            f"These settings have n = {settings.n} ≥ d = {settings.d}: the solution is unique, and nothing can be said "
            "about minimum norm. Choose n < d for the paper's case."
        )
    else:
        rows = {id: spread([o.distance for o in group]) for id, group in reached.items() if group}
        texts = {
            "stated": f"$\\|w^*\\|={settings.target_scale:g}$, scale a standard deviation",
            "variance": f"$\\|w^*\\|={settings.target_scale:g}$, scale a variance",
            "stated-gaussian": "$w^*\\sim N(0,I)$, standard deviation",
            "variance-gaussian": "$w^*\\sim N(0,I)$, variance",
        }
        listed = "; ".join(f"{text}: {rows[id]}" for id, text in texts.items() if id in rows)
        parts.append(
            "With the stated initialisation and n < d the flow fits the data and ends elsewhere. Relative "
            "distance from "
            f"$X^+y$ over {settings.seeds} seeds: {listed}. The component of $W_1(0)$ that no sample sees never "
            f"moves, and "
            "the formula predicts the distance exactly."
        )
        parts.append(
            "With the rows of $W_1(0)$ in the row space of $X$, with $W_1(0)=0$, or with n ≥ d, the paper's "
            "conclusion is "
            "right. Lemma A.1's hypothesis on $w(0)$ alone is not enough"
            + (f": distance {rows['product']}." if "product" in rows else ".")
        )
    late = [regimes[id].label for id, group in outcomes.items() if len(reached[id]) < len(group)]
    if late:
        parts.append(
            "Not every seed reached its limit in the time allowed, and only those that did count: "
            + ", ".join(late)
            + "."
        )  # noqa: E501
    return "\n\n".join(parts)


def _figure(regimes: dict[str, Regime], reached: dict[str, list[Outcome]]) -> Figure:
    floor = 1e-16
    groups = (
        ("n < d: elsewhere", ("stated", "variance", "stated-gaussian", "variance-gaussian", "product")),
        ("minimum norm", ("rowspace", "zero", "unique")),
    )
    shown = [id for _, ids in groups for id in ids if reached.get(id)]
    panels = []
    for title, ids in groups:
        here = [id for id in ids if id in shown]
        if not here:
            continue
        lines: list[Line] = []
        for label, style, attribute in (("measured", "o", "distance"), ("formula", "x", "predicted")):
            points = [(shown.index(id) + 1.0, max(getattr(o, attribute), floor)) for id in here for o in reached[id]]
            lines.append(Line(label, [x for x, _ in points], [y for _, y in points], style=style))
        ends = [shown.index(here[0]) + 0.5, shown.index(here[-1]) + 1.5]
        lines.append(Line("three digits", ends, [THREE_DIGITS / 2] * 2, style=":"))
        panels.append(Panel(title, "regime", "‖w(∞) − X⁺y‖ / ‖X⁺y‖", lines, yscale="log"))
    named = "; ".join(f"{i + 1}: {regimes[id].label}" for i, id in enumerate(shown))
    return Figure(
        "minimum-norm",
        "Distance of the limit from the minimum-norm solution",
        f"One point per seed. {named}. The formula needs only W₁(0) and w₂(∞); on the right it is zero up to rounding.",
        panels,
    )
