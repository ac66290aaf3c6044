"""The corollary: alignment with the feedback weights stays positive; its bound, its constant, zero initialisation."""

from __future__ import annotations

import numpy as np

from lawful.experiments.claims import Claim
from lawful.experiments.paper import Progress
from lawful.experiments.papers.robertson2023.laboratory import (
    ROUNDING,
    SMOOTH_TOLERANCE,
    aligned_field,
    data,
    descent,
    every,
    flow,
    generator,
    laws,
    record_times,
    stated_network,
)
from lawful.experiments.papers.robertson2023.settings import Settings
from lawful.experiments.papers.robertson2023.shorthand import NAMES, band, negligible
from lawful.experiments.records import Figure, Line, Panel, Section
from lawful.flows.activations import ACTIVATIONS, Floats
from lawful.flows.feedback import given_feedback
from lawful.flows.field import Field
from lawful.flows.network import Network
from lawful.flows.solve import solve
from lawful.rules.feedback_alignment import FeedbackAlignment

_SOURCE = "Corollary of Theorem 5.1"
_WINDOW = 1.5
"""‖W_1(0)‖²/‖W_2(0)‖² between 1, where the paper's condition ends, and 2, where ours does."""


def stage(settings: Settings, seed: int, progress: Progress) -> Section:
    """Alignment over time: the bound, the condition with √2, the neuron-level condition, zero initialisation."""
    progress.update(0.0, "the bound over time")
    bound_claims, bound_panels = _bound(settings, seed)
    progress.update(0.6, "the constant of the condition")
    sharp_claims, sharp_panel, sharp_text = _sharp(settings.width)
    progress.update(0.8, "zero initialisation")
    zero_claims = _zero(settings, seed)
    return Section(
        id="corollary",
        title="The corollary: alignment that stays positive",
        paper_says=(
            "If $W_{i+1}(0)=B_{i+1}$ and $\\|W_i(0)\\|\\le\\|W_{i+1}(0)\\|$, then $\\langle "
            "W_{i+1}(t),B_{i+1}\\rangle\\ge0$ "
            "for all time. From zero initialisation alignment is never negative."
        ),
        measured=(
            "Half of the energy is enough: $\\frac12\\|W_i(0)\\|^2\\le\\|W_{i+1}(0)\\|^2$, a factor $\\sqrt2$ "
            "weaker in norm. "
            "The law gives the bound at once, and neuron by neuron. Networks whose first layer violates the paper's "
            f"condition but not this one ($\\|W_1\\|^2={_WINDOW}\\|W_2\\|^2$) stay aligned. {sharp_text}\n\n"
            "In discrete steps the guarantee erodes by exactly the ledger. A ReLU network with all weights zero "
            "does not "
            "move at all; a linear one does, and stays aligned."
        ),
        equations=(
            r"\langle W_{i+1}(t),B_{i+1}\rangle"
            r"=\tfrac12\|W_i(t)\|^2+\langle W_{i+1}(0),B_{i+1}\rangle-\tfrac12\|W_i(0)\|^2"
            r"\;\ge\;\langle W_{i+1}(0),B_{i+1}\rangle-\tfrac12\|W_i(0)\|^2",
            r"\tfrac12\|W_i(0)\|^2\le\|W_{i+1}(0)\|^2\ \text{and}\ W_{i+1}(0)=B_{i+1}\ \Rightarrow\ "
            r"\langle W_{i+1}(t),B_{i+1}\rangle\ge0",
        ),
        claims=[*bound_claims, *sharp_claims, *zero_claims],
        figures=(
            Figure(
                "corollary",
                "Alignment with the feedback weights over time, and its guaranteed bound",
                f"First hidden layer scaled to ‖W₁‖² = {_WINDOW}‖W₂‖²: outside the paper's condition, inside "
                f"ours. Right: "
                "one input, first layer along B; the alignment reaches the bound, and crosses zero beyond factor √2.",
                (*bound_panels, sharp_panel),
            ),
        ),
    )


def window_network(settings: Settings, seed: int, number: int, activation: str) -> Network:
    """The stated two-layer network with W_1 rescaled to ‖W_1‖² = 1.5 ‖W_2‖²: only the √2 condition holds."""
    network = stated_network(settings, seed, number, activation, depth=2)
    W1, W2 = network.weights
    return Network.make([W1 * np.linalg.norm(W2) * _WINDOW**0.5 / np.linalg.norm(W1), W2], activation=activation)


def _bound(settings: Settings, seed: int) -> tuple[list[Claim], list[Panel]]:
    claims: list[Claim] = []
    panels: list[Panel] = []
    for name in settings.activations:
        if ACTIVATIONS[name].degree is None:
            continue
        t = record_times(settings)
        layer, floor, neuron, erosion, errors = [], [], [], [], [SMOOTH_TOLERANCE]
        for number in range(settings.seeds):
            field = aligned_field(window_network(settings, seed, number, name), data(settings, seed, number))
            run = flow(field, settings)
            found = laws(field, run.theta)
            a, e = found.alignment[0], found.energy[0]
            scale = float(a[0].sum())
            layer.append(a.sum(1) / scale)
            floor.append(float(a[0].sum() - e[0].sum()) / scale)
            guarded = a[0] >= e[0]  # the condition of theory at the level of a neuron
            worst = float(a[:, guarded].min()) / found.neuron_scales[0] if guarded.any() else np.inf
            neuron.append((int(guarded.sum()), worst))
            erosion.append(_erosion(settings, field))
            if not field.network.smooth:
                errors.append(run.error_estimate)
        claims += _bound_claims(name, layer, floor, neuron, erosion, float(f"{max(errors):.0e}"))
        lines = (
            band("⟨W₂(t), B₂⟩ / ⟨W₂(0), B₂⟩", t, layer),
            Line("guaranteed", t, np.full_like(t, min(floor)), style="--"),
            Line("zero", t, np.zeros_like(t), style=":"),
        )
        panels.append(Panel(f"{NAMES[name]} network", "time t = lr · step", "relative alignment", lines))
    return claims, panels


def _erosion(settings: Settings, field: Field) -> float:
    """Discrete steps: |⟨W_2, B_2⟩ − (½‖W_1‖² + q(0) − ledger)|, relative."""
    stepped = descent(field, settings.lr, settings.steps, every(settings))
    found = laws(field, stepped.trajectory.theta)
    start = found.layers[0][0]
    predicted = found.energy[0].sum(1) + start - stepped.ledger[0].sum(1)
    return float(np.abs(found.alignment[0].sum(1) - predicted).max()) / found.layer_scales[0]


def _bound_claims(
    name: str,
    layer: list[Floats],
    floor: list[float],
    neuron: list[tuple[int, float]],
    erosion: list[float],
    slack: float,
) -> list[Claim]:
    spelled = NAMES[name]
    lowest = min(float(a.min()) - f for a, f in zip(layer, floor, strict=True))
    claims = [
        Claim.at_least(
            f"corollary.{name}.bound",
            _SOURCE,
            f"{spelled} network: relative alignment stays above its bound q(0); smallest margin over time and seeds.",
            lowest,
            -slack,
        )
    ]
    if min(floor) >= 0:
        claims.append(
            Claim.at_least(
                f"corollary.{name}.sqrt2",
                _SOURCE,
                f"{spelled} network with |W_1|^2 = {_WINDOW} |W_2|^2, outside the paper's condition: alignment "
                f"stays >= 0 "
                "under the sqrt(2) weaker one (smallest relative alignment).",
                min(float(a.min()) for a in layer),
                0.0,
            )
        )
    guarded = sum(count for count, _ in neuron)
    if guarded:
        claims.append(
            Claim.at_least(
                f"corollary.{name}.neuron",
                _SOURCE,
                f"{spelled} network: the {guarded} neurons with |W_1[j]|^2 <= "
                f"{2 * (ACTIVATIONS[name].degree or 1)} |W_2[:,j]|^2 stay aligned one by one "
                "(smallest alignment, relative).",
                min(worst for _, worst in neuron),
                -slack,
            )
        )
    claims.append(
        negligible(
            f"corollary.{name}.erosion",
            _SOURCE,
            f"{spelled} network, discrete steps: the guarantee erodes by exactly the ledger.",
            max(erosion),
            ROUNDING,
        )
    )
    return claims


def sharp_field(width: int, ratio: float) -> Field:
    """One input, one sample: W_1(0) = −s b with s² = ``ratio``, w_2(0) = b, ‖b‖ = 1, and a target far above.

    With u the coordinate of W_1 = u b, ⟨w_2, b⟩ = 1 − s²/2 + u²/2: it meets the bound where u passes 0.
    """
    b = np.ones(width) / width**0.5
    network = Network.make([-(ratio**0.5) * b[:, None], b[None, :]])
    return Field(network, FeedbackAlignment(init="aligned"), np.ones((1, 1)), np.array([10.0]))


def _sharp(width: int) -> tuple[list[Claim], Panel, str]:
    lines: list[Line] = []
    lowest: dict[float, float] = {}
    claims: list[Claim] = []
    for color, (ratio, id, name) in enumerate(((1.6, "inside", "stays positive"), (2.4, "outside", "turns negative"))):
        field = sharp_field(width, ratio)
        run = solve(field, 1.0, num_points=1000)
        (W1, W2), _ = field.network.unpack(run.theta)
        b = field.states[1]["B"][0]
        alignment, u = W2[:, 0] @ b, W1[:, :, 0] @ b
        lowest[ratio] = float(alignment.min())
        gap = 0.125 * float(np.diff(u).max()) ** 2  # u passes 0 between two records: ½(Δu/2)²
        lines.append(Line(f"‖W₁‖² = {ratio}‖W₂‖²", run.t, alignment, color=color))
        lines.append(Line("", run.t, np.full_like(run.t, 1 - ratio / 2), style="--", color=color))
        claims.append(
            Claim.close(
                f"corollary.sharp.{id}",
                _SOURCE,
                f"The constant sqrt(2) is best possible: with |W_1|^2 = {ratio} |W_2|^2 along B the alignment falls to "
                f"its bound 1 - {ratio}/2 and {name}.",
                lowest[ratio],
                1 - ratio / 2,
                abs=float(f"{gap + SMOOTH_TOLERANCE:.1e}"),
            )
        )
    text = (
        "The constant cannot be improved: in the example on the right the alignment falls to "
        f"{lowest[1.6]:.3f} with $\\|W_1\\|^2=1.6\\|W_2\\|^2$ and to {lowest[2.4]:.3f} with 2.4."
    )
    return claims, Panel("one input, W₁ against B", "time", "⟨w₂, b⟩ / ‖b‖²", tuple(lines)), text


def _zero(settings: Settings, seed: int) -> list[Claim]:
    claims: list[Claim] = []
    worst, least, reached = 0.0, np.inf, 0.0
    for number in range(settings.seeds):
        B = generator(seed, number, 2).standard_normal((settings.outputs, settings.width))
        field = _zero_field(settings, seed, number, B, "linear")
        run = flow(field, settings)
        found = laws(field, run.theta)
        a, e = found.alignment[0], found.energy[0]
        reached = max(reached, float(a.max()))
        worst = max(worst, float(np.abs(a - e).max()) / max(float(e.max()), 1e-300))
        least = min(least, float(a.sum(1).min()) / max(float(a.max()), 1e-300))
    claims.append(
        negligible(
            "corollary.zero.equality",
            _SOURCE,
            "Linear network, all weights zero at the start, B random: <W_2, B_2> = 1/2 |W_1|^2 for every neuron, "
            "so the "
            "alignment is never negative.",
            max(worst, -least),
            SMOOTH_TOLERANCE,
        )
    )
    claims.append(Claim.true("corollary.zero.moves", _SOURCE, "That network does learn from zero.", reached > 0))
    if settings.activation in ("relu", "leaky_relu", "square"):
        B = generator(seed, 0, 2).standard_normal((settings.outputs, settings.width))
        field = _zero_field(settings, seed, 0, B, settings.activation)
        moved = bool(field(field.theta0).any())
        stuck = settings.activation != "leaky_relu"
        claims.append(
            Claim.true(
                f"corollary.zero.{settings.activation}",
                _SOURCE,
                f"From all-zero weights a {NAMES[settings.activation]} network "
                + ("never moves: with slope 0 at 0 every update is zero." if stuck else "moves through its leak."),
                moved is not stuck,
                measured="moves" if moved else "all updates zero",
                expected="all updates zero" if stuck else "moves",
            )
        )
    return claims


def _zero_field(settings: Settings, seed: int, number: int, B: Floats, activation: str) -> Field:
    network = Network.make(
        [np.zeros((settings.width, settings.d)), np.zeros((settings.outputs, settings.width))], activation=activation
    )
    problem = data(settings, seed, number)
    return Field(
        network,
        FeedbackAlignment(),
        problem.X,
        problem.Y,
        kappa=1 / settings.n,
        states=given_feedback(network, [None, B]),
    )
