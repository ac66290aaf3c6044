"""An audit in plain words: which cause broke which law, at which step, and what the guarantee is still worth."""

from __future__ import annotations

import math
from typing import Final

from lawful.experiments.records import Table
from lawful.measures.guarantee import Guarantee
from lawful.training.audit import BROKEN, Audit, Site
from lawful.training.settings import Settings

KEPT: Final = 1e-10
"""A law whose numbers moved by less than this share has been kept to rounding."""
FORM: Final = (
    r"q_{s+1}=q_s+r_s+d_s,\qquad r_s=\beta\,(r_{s-1}+2d_{s-1})-p\,\eta\lambda\,q_s,\qquad d_s=\text{finite step }s"
)
"""The prediction laid over the laws; p = 1 for shift laws, 2 for the others."""
_MAX_ROWS: Final = 20
_MAX_REASONS: Final = 12


def label(site: Site) -> str:
    """A layer has two shift laws, which only the formula tells apart."""
    return site.formula.replace("_j", "ⱼ") if site.kind in ("shift", "bias") else f"{site.name} ({site.kind})"


def by_size(found: Audit) -> list[Site]:
    """The laws, the one that moved most first."""
    return sorted(found.sites, key=lambda site: -site.moved[-1])


def summary(found: Audit, settings: Settings) -> str:
    """The whole audit in a few paragraphs, the answer first."""
    if not found.epochs:
        return "No epoch was trained, so nothing has moved."
    parts = [_headline(found), _trained(found, settings), *(_guaranteed(g, found) for g in found.guarantees)]
    parts += [f"No law for {name}: {why}." for name, why in list(found.reasons.items())[:_MAX_REASONS]]
    parts += [f"Unknown operation: {what}." for what in found.unknown]
    return "\n\n".join(parts)


def _headline(found: Audit) -> str:
    broken = [site for site in by_size(found) if site.broken is not None]
    if not broken:
        most = by_size(found)[0]
        if most.moved[-1] < KEPT:
            return "**Nothing broke conservation.** Every law was kept to rounding."
        return (
            f"**Nothing broke conservation.** No law moved by {100 * BROKEN:g} %; {label(most)} moved most, by "
            f"{100 * most.moved[-1]:.2g} %: {_causes(most)}."
        )
    first = min(broken, key=lambda site: site.broken or 0)
    total = sum(float(site.moved[-1]) for site in broken) or 1.0
    weight: dict[str, float] = {}
    for site in broken:
        for cause, share in site.shares:
            weight[cause] = weight.get(cause, 0.0) + share * float(site.moved[-1]) / total
    cause, share = max(weight.items(), key=lambda item: item[1])
    furthest = "it also" if broken[0] is first else label(broken[0])
    return (
        f"**{cause.capitalize()} broke conservation**, from step {first.broken} on: {len(broken)} of "
        f"{len(found.sites)} laws moved by more than {100 * BROKEN:g} %, and {cause} is {100 * share:.0f} % of what "
        f"moved them. First went {label(first)}; {furthest} moved furthest, by {100 * broken[0].moved[-1]:.3g} %."
    )


def _trained(found: Audit, settings: Settings) -> str:
    last = found.epochs[-1]
    return (
        f"{len(found.epochs)} epochs of {found.steps_per_epoch} steps of {settings.batch} examples: training loss "
        f"{last.loss:.3g}, test accuracy {100 * last.accuracy:.1f} %."
    )


def _causes(site: Site) -> str:
    return ", ".join(f"{cause} {100 * share:.0f} %" for cause, share in site.shares if share >= 0.005)


def _guaranteed(guarantee: Guarantee, found: Audit) -> str:
    layer = guarantee.layer
    bound, start = float(layer.bound), float(layer.start)
    if bound > 0:
        told = f"the law guarantees at least {bound:.3g} ({start:.3g} at the start); {_forecast(layer, found)}."
    elif start > 0:
        told = f"the guarantee of the start ({start:.3g}) is used up."
    else:
        told = "the law guarantees nothing, since ⟨W, B⟩ did not exceed ½‖W‖² + ½‖b‖² of the layer below at the start."
    single = int((guarantee.bound > 0).sum())
    if single and len(guarantee.bound) > 1:
        soonest = float(guarantee.step[guarantee.bound > 0].min())
        when = "" if math.isinf(soonest) else f"; the first of them loses it at step {_at(soonest, found)}"
        told += f" Singly, {single} of {len(guarantee.bound)} neurons are guaranteed{when}."
    return f"Alignment behind {guarantee.law}: ⟨W, B⟩ is {float(layer.alignment):.3g} now; {told}"


def _forecast(layer: Guarantee, found: Audit) -> str:
    step = float(layer.step)
    return "it does not erode" if math.isinf(step) else f"at the recent rate it is used up at step {_at(step, found)}"


def _at(step: float, found: Audit) -> str:
    return f"{step:,.0f} (epoch {step / found.steps_per_epoch:,.0f})"


def laws_table(found: Audit) -> Table:
    """One row a law: whether it was kept, when it broke, how far it moved, and what moved it."""
    ordered = by_size(found)
    rows = [_row(site) for site in ordered[:_MAX_ROWS]]
    left = len(ordered) - len(rows)
    more = f" {left} laws that moved less are left out." if left > 0 else ""
    return Table(
        "What broke conservation, and when",
        f"Broken: moved by more than {100 * BROKEN:g} % of the sum of its numbers at the start. Kept: to rounding. "
        f"Causes: their share of all that moved it.{more}",
        ("law", "verdict", "at step", "moved by", "caused by", "form"),
        rows,
    )


def _row(site: Site) -> tuple[str, ...]:
    if site.moved[-1] < KEPT and site.broken is None:
        return label(site), "kept", "–", "0", "–", "constant"
    verdict = "moved" if site.broken is None else "broken"
    when = "–" if site.broken is None else str(site.broken)
    form = "none" if site.predicted is None else "predicted"
    return label(site), verdict, when, f"{100 * site.moved[-1]:.3g} %", _causes(site), form


def theory(found: Audit, settings: Settings) -> str:
    """What is expected, and for which laws no closed form is."""
    parts = [
        "Along the flow of a feedback rule with $B=\\nabla\\Psi(W)$ every law here is constant (Robertson & Koyejo "
        "2023; Du, Hu & Lee 2018; Kunin et al. 2021). What moves it is the optimiser: finite steps, weight decay, "
        "momentum, preconditioning.",
    ]
    name = settings.optimizer.partition(":")[0]
    if found.constants is None:
        parts.append(
            f"There is no closed form for {name}: what its preconditioning and momentum do to a law depends on the "
            "gradients themselves, so it is measured here and not predicted."
        )
        return "\n\n".join(parts)
    decay, momentum = found.constants
    if any(site.predicted is not None for site in found.sites):
        parts.append(
            f"The optimiser is heavy-ball SGD with momentum $\\beta={momentum:g}$ and decay $\\lambda={decay:g}$. Laws "
            "whose form is predicted follow from $q(0)$ and the finite steps alone, exactly: the recursion below is "
            "$e^{-p\\lambda t}$ (decay) and $\\ddot q+\\gamma\\dot q=\\|\\dot W\\|^2$ (momentum) written in steps."
        )
    if decay and any(site.predicted is None and site.kind == "neuron" for site in found.sites):
        parts.append(
            "Where weights are read through a feedback that decay does not scale with them, the same decay on every "
            "layer has no closed form: it shrinks $\\frac12\\|W\\|^2$ twice as fast as $\\langle W,B\\rangle$. With "
            "$\\lambda$ below and $2\\lambda$ above it has: `lawful reproduce kunin2021`, stage feedback."
        )
    return "\n\n".join(parts)
