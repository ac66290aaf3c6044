"""The pictures of an audit: laws over time, predictions, the budget by cause, alignment, the guarantee."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from lawful.experiments.audit.words import KEPT, by_size, label
from lawful.experiments.records import Figure, Line, Panel
from lawful.measures.guarantee import Guarantee
from lawful.training.audit import BROKEN, Alignment, Audit, Floats, Site
from lawful.training.settings import Settings

_MAX_PANELS: Final = 3
_MAX_LINES: Final = 6
_FLOOR: Final = 1e-16
_COLORS: Final[Mapping[str, int]] = {
    "finite step": 0,
    "weight decay": 1,
    "momentum": 2,
    "preconditioning": 3,
    "unequal learning rates": 4,
    "eps of a norm": 5,
    "between steps": 6,
}
"""One colour a cause, in every panel of every audit; what is not named here is grey."""
_GREY: Final = 7


def figures(found: Audit, settings: Settings) -> list[Figure]:
    """Those that have something to show."""
    if not found.epochs:
        return []
    drawn = [_moved(found)]
    most = [site for site in by_size(found) if site.moved[-1] >= KEPT][:_MAX_PANELS]
    if most:
        drawn += [_laws(found, most, settings), _budget(found, most)]
    cosines = [c for one in found.alignments for c in (*one.deltas.values(), *one.gradients.values())]
    if len(found.alignments) > 1 and min(cosines, default=1.0) < 1 - 1e-9:  # backpropagation agrees with itself
        drawn.append(_alignment(found.alignments))
    promised = [guarantee for guarantee in found.guarantees if float(guarantee.layer.start) > 0]
    if len(found.alignments) > 1 and promised:
        drawn.append(_guarantee(found, promised[:_MAX_PANELS]))
    return drawn


def _moved(found: Audit) -> Figure:
    """Every law on one logarithmic axis: which are kept, which drift, which are broken."""
    steps = found.steps.astype(np.float64)
    chosen = by_size(found)[: _MAX_LINES + 1]
    lines = [Line(_short(site), steps[1:], np.maximum(site.moved[1:], _FLOOR)) for site in chosen]
    lines.append(
        Line(f"broken: {100 * BROKEN:g} %", steps[1:], np.full(len(steps) - 1, BROKEN), style=":", color=_GREY)
    )
    return Figure(
        "audit-moved",
        "How far every law has moved",
        "Change of a law's numbers over their size at the start, summed over channels; what is below 1e-16 is drawn "
        "there. Rounding lies at about 1e-15; a law above the dotted line is broken.",
        [Panel("", "step", "Σ |q − q(0)| / Σ |q(0)|", lines, yscale="log")],
    )


def _laws(found: Audit, most: Sequence[Site], settings: Settings) -> Figure:
    steps = found.steps.astype(np.float64)
    decay, momentum = found.constants or (0.0, 0.0)
    panels = []
    for site in most:
        lines = [Line("measured", steps, site.q, color=0)]
        if site.predicted is not None:
            lines.append(Line("predicted", steps, site.predicted, style="--", color=1))
            if decay and not momentum:
                power = 1 if site.kind in ("shift", "bias") else 2
                alone = site.q[0] * np.exp(-power * decay * settings.lr * steps)
                lines.append(Line("by decay alone", steps, alone, style=":", color=4))
        lines.append(Line("at the start", steps, np.full_like(steps, site.q[0]), style=":", color=_GREY))
        form = "" if site.predicted is not None else "; no closed form"
        panels.append(Panel(_short(site), "step", "Σ q", lines, note=f"moved by {100 * site.moved[-1]:.2g} %{form}"))
    return Figure(
        "audit-laws",
        "The laws over time, and the form that theory predicts",
        "The laws that moved most, summed over channels. Predicted: from q(0) and the size of the steps alone, no "
        "gradient enters. Mind the axes: they are as wide as the change, which the line under each title states.",
        panels,
    )


def _budget(found: Audit, most: Sequence[Site]) -> Figure:
    steps = found.steps.astype(np.float64)
    panels = [
        Panel(_short(site), "step", "% of Σ |q(0)|", [
            *_stacked(steps, {cause: 100 * site.budget[cause] / site.start for cause in _order(site.budget)}),
            Line("net change", steps, 100 * site.moved, style="--", color=_GREY),
        ])
        for site in most
    ]  # fmt: skip
    return Figure(
        "audit-budget",
        "What moved them: the budget by cause",
        "Σ |part of q − q(0)| of every cause, stacked, relative to Σ |q(0)|. Where the net change lies below the stack "
        "causes work against each other.",
        panels,
    )


def _order(causes: Iterable[str]) -> list[str]:
    """The same causes lie in the same order in every panel."""
    return sorted(causes, key=lambda cause: _COLORS.get(cause, _GREY))


def _stacked(x: Floats, budget: Mapping[str, Floats]) -> list[Line]:
    """One filled layer a cause that matters at all, in the order given."""
    total = sum(float(part[-1]) for part in budget.values())
    lines, base = [], np.zeros_like(x)
    for cause, part in budget.items():
        if part[-1] <= 1e-6 * total:
            continue
        top = base + part
        lines.append(Line(cause, x, top, low=base, high=top, color=_COLORS.get(cause, _GREY), opacity=0.55))
        base = top
    return lines


def _alignment(alignments: Sequence[Alignment]) -> Figure:
    epochs = np.arange(len(alignments), dtype=np.float64)

    def series(of: Callable[[Alignment], Mapping[str, float]], keep: Callable[[str], bool]) -> dict[str, Floats]:
        names = [name for name in of(alignments[0]) if keep(name)]
        return {name: np.array([of(one).get(name, math.nan) for one in alignments]) for name in _spread(names)}

    def panel(title: str, ylabel: str, found: Mapping[str, Floats], wide: bool, full: Any, half: Any) -> Panel:
        lines = [Line(name, epochs, values) for name, values in found.items()]
        return Panel(title, "epoch", ylabel, lines, ylim=full if wide else half)

    angles = series(lambda one: one.angles, lambda _: True)
    deltas = series(lambda one: one.deltas, lambda _: True)
    gradients = series(lambda one: one.gradients, lambda name: name.endswith("weight"))
    obtuse = any(float(np.nanmax(v)) > 100 for v in angles.values())
    cosines = [panel(title, "cosine with backprop", found, any(float(np.nanmin(v)) < -0.05 for v in found.values()),
                     (-1.05, 1.05), (-0.05, 1.05))
               for title, found in (("errors δ", deltas), ("gradients", gradients)) if found]  # fmt: skip
    weights = [panel("weights and feedback", "∠(W, B), degrees", angles, obtuse, (0, 185), (0, 100))] if angles else []
    return Figure(
        "audit-alignment",
        "Distance from backpropagation, layer by layer",
        "Angle 0 and cosine 1 are backpropagation, 90 degrees and 0 are unrelated; before training and after every "
        "epoch. The feedback of a layer that reads the data is never used, so its angle tells nothing.",
        [*weights, *cosines],
    )


def _guarantee(found: Audit, promised: Sequence[Guarantee]) -> Figure:
    steps = found.steps.astype(np.float64)
    at = np.array([one.step for one in found.alignments], dtype=np.float64)
    q = {site.name: site.q for site in found.sites if site.kind == "neuron"}
    panels = []
    for guarantee in promised:
        name, layer = guarantee.law, guarantee.layer
        measured, bound = np.array([one.guarantees[name][0] for one in found.alignments]), -q[name]
        forecast = "" if math.isinf(float(layer.step)) else f", used up at step {float(layer.step):,.0f}"
        note = f"{float(layer.bound):.3g} guaranteed{forecast}" if float(layer.bound) > 0 else "used up"
        lines = [
            Line("⟨W, B⟩", at, measured, style="o-", color=0),
            Line("guaranteed: −Σ q", steps, bound, color=1),
            Line("by the flow: −Σ q(0)", steps, np.full_like(steps, bound[0]), style=":", color=_GREY),
        ]
        lowest = min(0.0, 1.1 * float(bound.min()), 1.1 * float(measured.min()))
        limits = lowest, 1.1 * max(float(measured.max()), float(bound.max()))
        panels.append(Panel(f"behind {name}", "step", "k⟨W, B⟩", lines, note=note, ylim=limits))
    return Figure(
        "audit-guarantee",
        "The alignment that the law guarantees",
        "The weights that read a layer stay aligned with their feedback at least as far as the guaranteed line, which "
        "the optimiser's steps eat up. Below zero it promises nothing.",
        panels,
    )


def _short(site: Site) -> str:
    text = label(site)
    return text if len(text) <= 34 else f"{text[:15]}…{text[-17:]}"


def _spread(names: Sequence[str]) -> list[str]:
    """At most six layers from the first to the last."""
    index = np.unique(np.linspace(0, len(names) - 1, min(_MAX_LINES, len(names))).round().astype(int))
    return [str(names[i]) for i in index]
