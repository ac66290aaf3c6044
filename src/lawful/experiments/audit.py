"""An audited training as a paper of one stage, so that it is stored, resumed and reported like a reproduction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lawful.experiments.claims import Claim
from lawful.experiments.paper import Paper, Progress
from lawful.experiments.papers.robertson2023.shorthand import negligible
from lawful.experiments.records import Figure, Line, Panel, Section
from lawful.training import settings as training_settings
from lawful.training.audit import BROKEN, Audit, Floats, Site, audit
from lawful.training.settings import make_optimizer

BOOKS: Final = 1e-10
"""Relative remainder and violation allowed: what the ledger promises in float64."""
_MAX_PANELS: Final = 3
_MAX_ROWS: Final = 12


@dataclass(frozen=True)
class Settings(training_settings.Settings):
    """Those of a training run."""

    def validate(self) -> None:
        """Does nothing: they are checked when they are made."""


def decay_of(settings: training_settings.Settings) -> float | None:
    """λ when the run's laws have a closed form under it: SGD without momentum, backpropagation; else None."""
    import torch

    probe = make_optimizer(settings.optimizer, [torch.nn.Parameter(torch.zeros(1))], settings.lr)
    plain = type(probe) is torch.optim.SGD and not probe.defaults["momentum"] and not probe.defaults["maximize"]
    own_law = settings.rule.partition(":")[0].lower() in ("bp", "backprop")
    return float(probe.defaults["weight_decay"]) if plain and own_law else None


def predicted(site: Site, t: Floats, decay: float) -> Floats:
    """e^{−pλt}(q(0) + Σ e^{pλt_r} · finite step_r), p = 1 for shift laws and 2 for the others (Kunin et al. 2021)."""
    rate = decay * (1 if site.kind == "shift" else 2)
    fed = np.diff(site.signed["finite step"])
    middle = 0.5 * (t[1:] + t[:-1])
    grown = np.concatenate([[0.0], np.cumsum(np.exp(rate * middle) * fed)])
    return np.exp(-rate * t) * (site.q[0] + grown)


def stage(settings: Settings, seed: int, progress: Progress) -> Section:
    """Train with the laws on the ledger; ``seed`` is that of the settings."""
    found = audit(settings, progress.update)
    return Section(
        id="audit",
        title=f"{settings.model} on {settings.data} by {settings.rule} with {settings.optimizer}",
        paper_says=(
            "Along the flow of a feedback rule with $B=\\nabla\\Psi(W)$ every law below is constant (Robertson & "
            "Koyejo "
            "2023; Du, Hu & Lee 2018; Kunin et al. 2021). What moves it is the optimiser: finite steps, weight decay, "
            "momentum, preconditioning. With plain SGD the finite steps of feedback alignment add exactly "
            "$\\frac12\\|\\Delta\\|^2$."
        ),
        measured=_measured(found),
        equations=(
            r"q(t)=q(0)+\text{rule}+\text{finite step}+\text{weight decay}+\text{momentum}+\text{preconditioning}",
        ),
        claims=_claims(found, settings),
        figures=_figures(found, settings),
        arrays={
            "steps": found.steps,
            **{f"{i}.{site.name}.q".replace("/", "_"): site.q for i, site in enumerate(found.sites)},
        },
    )


def _claims(found: Audit, settings: Settings) -> list[Claim]:
    claims = [
        negligible("audit.rule", "conservation", "The backward pass itself moves no law (largest relative part).",
                   found.violation, BOOKS),
        negligible("audit.books", "conservation", "The causes explain every change of every law (largest relative "
                   "remainder).", found.residual, BOOKS),
    ]  # fmt: skip
    for at, guarantee in enumerate(found.guarantees):
        margin = float((guarantee.alignment - guarantee.bound).min())
        claims.append(
            Claim.at_least(f"audit.guarantee.{at}", "Corollary of Theorem 5.1", f"{guarantee.law}: every neuron's "
                           "alignment ⟨W, B⟩ lies above its guaranteed bound (smallest margin).", margin, 0.0)
        )  # fmt: skip
    return claims


def _measured(found: Audit) -> str:
    parts = [
        f"{len(found.sites)} laws over {found.steps[-1]} recorded steps; final loss {found.epochs[-1].loss:.3g}, test "
        f"accuracy {100 * found.epochs[-1].accuracy:.1f} %."
        if found.epochs
        else "No epoch was trained."
    ]
    ordered = sorted(found.sites, key=lambda site: -site.moved[-1])
    parts.append("What broke conservation, and when (a law counts as broken when it has moved by 1 %):")
    for site in ordered[:_MAX_ROWS]:
        when = "not broken" if site.broken is None else f"broken by step {site.broken}"
        total = sum(float(budget[-1]) for budget in site.budget.values()) or 1.0
        shares = sorted(((float(b[-1]) / total, cause) for cause, b in site.budget.items()), reverse=True)
        why = ", ".join(f"{cause} {100 * share:.0f} %" for share, cause in shares if share >= 0.005)
        told = f"{when}, moved by {100 * site.moved[-1]:.3g} %; {why}"
        parts.append(f"{_label(site)}: {'kept to rounding' if site.moved[-1] < BOOKS else told}.")
    if len(ordered) > _MAX_ROWS:
        parts.append(f"{len(ordered) - _MAX_ROWS} more laws moved less.")
    for guarantee in found.guarantees:
        layer = guarantee.layer
        bound, step = float(layer.bound), float(layer.step)
        if bound <= 0:
            text = "guarantees nothing now" + ("" if float(layer.start) > 0 else ", nor did it at the start")
        elif math.isinf(step):
            text = f"guarantees ⟨W, B⟩ ≥ {bound:.3g} and does not erode"
        else:
            text = f"guarantees ⟨W, B⟩ ≥ {bound:.3g}; at the recent rate it is used up at step {step:.0f}"
        parts.append(f"Alignment behind {guarantee.law}: ⟨W, B⟩ = {float(layer.alignment):.3g}; the law {text}.")
    parts += [f"No law for {name}: {why}." for name, why in list(found.reasons.items())[:_MAX_ROWS]]
    parts += [f"Unknown operation: {what}." for what in found.unknown]
    return "\n\n".join(parts)


def _figures(found: Audit, settings: Settings) -> list[Figure]:
    steps = found.steps.astype(np.float64)
    decay = decay_of(settings)
    most = sorted(found.sites, key=lambda site: -site.moved[-1])[:_MAX_PANELS]
    laws = []
    for site in most:
        lines = [Line("measured", steps, site.q)]
        if decay:
            form = predicted(site, settings.lr * steps, decay)
            lines.append(Line("predicted from decay and finite steps", steps, form, style="--"))
        lines.append(Line("at the start", steps, np.full_like(steps, site.q[0]), style=":"))
        laws.append(Panel(_short(site), "step", "Σ q", lines))
    budgets = [_budget(site, steps) for site in most]
    figures = [
        Figure("audit-laws", "The laws over time", "The laws that moved most, summed over channels.", laws),
        Figure(
            "audit-budget",
            "What moved them: the budget by cause",
            "Absolute parts, summed over channels and stacked; the books close to rounding.",
            budgets,
        ),
    ]
    seen = [c for one in found.agreements for c in (*one.deltas.values(), *one.gradients.values())]
    if len(found.agreements) > 1 and min(seen, default=1.0) < 1 - 1e-9:  # backpropagation agrees with itself
        figures.append(_alignment(found.agreements))
    return figures


def _label(site: Site) -> str:
    """A layer has two shift laws, which only the formula tells apart."""
    return site.formula if site.kind == "shift" else f"{site.name} ({site.kind})"


def _short(site: Site) -> str:
    label = _label(site)
    return label if len(label) <= 34 else f"{label[:15]}…{label[-17:]}"


def _budget(site: Site, steps: Floats) -> Panel:
    layers = _stacked(steps, site.budget)
    # one line alone gets no legend
    note = f"all of it {layers[0].label}" if len(layers) == 1 else ""
    return Panel(_short(site), "step", "Σ |part of q − q(0)|", layers, note=note)


def _stacked(x: Floats, budget: Mapping[str, Floats]) -> list[Line]:
    """One filled layer a cause that matters at all, from the largest at the bottom."""
    total = sum(float(part[-1]) for part in budget.values())
    kept = sorted((cause for cause in budget if budget[cause][-1] > 1e-6 * total), key=lambda c: -budget[c][-1])
    lines, base = [], np.zeros_like(x)
    for cause in kept:
        top = base + budget[cause]
        lines.append(Line(cause, x, top, low=base, high=top))
        base = top
    return lines or [Line("nothing", x, base)]


def _alignment(agreements: Sequence[Any]) -> Figure:
    epochs = np.arange(len(agreements), dtype=np.float64)
    panels = []
    for title, kind in (("errors δ", "deltas"), ("gradients", "gradients")):
        series = {
            name: np.array([getattr(one, kind).get(name, math.nan) for one in agreements])
            for name in getattr(agreements[0], kind)
            if kind == "deltas" or name.endswith("weight")
        }
        chosen = _spread(list(series))
        panels.append(Panel(title, "epoch", "cosine with backprop", [Line(n, epochs, series[n]) for n in chosen]))
    return Figure(
        "audit-alignment",
        "Agreement with backpropagation, layer by layer",
        "1 is backpropagation, 0 is unrelated; before training and after every epoch.",
        panels,
    )


def _spread(names: Sequence[str]) -> list[str]:
    """At most six layers from the first to the last."""
    index = np.unique(np.linspace(0, len(names) - 1, min(6, len(names))).round().astype(int))
    return [str(names[i]) for i in index]


PAPER = Paper(
    id="audit",
    title="An audited training",
    citation=f"Laws on the ledger; a law counts as broken when it has moved by {100 * BROKEN:g} %.",
    settings=Settings,
    stages={"audit": stage},
)
"""What ``lawful audit`` runs."""
