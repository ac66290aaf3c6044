"""A training run with its laws on the ledger: what moved each of them, when, and how far the rule is from backprop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from lawful.conservation.derive import laws_of
from lawful.errors import NoLawError
from lawful.ledger.ledger import FINITE, RULE, Ledger
from lawful.measures.deltas import Agreement, agreement
from lawful.measures.guarantee import Guarantee, guarantees
from lawful.training.loop import Training
from lawful.training.observer import Epoch
from lawful.training.settings import Settings

Floats = NDArray[np.float64]
RECORDS: Final = 200
"""Points in time at which the books are read."""
BROKEN: Final = 0.01
"""A law counts as broken when its numbers have moved by this share of their start, summed over channels."""
_PROBE: Final = 256


@dataclass(frozen=True)
class Site:
    """One law along the run, its numbers summed over channels; R records, the first of them step 0.

    Attributes:
        name: the site.
        kind: "neuron", "scale" or "shift".
        formula: q in print.
        q: Σ_j q_j (R,).
        moved: Σ_j |q_j − q_j(0)| / Σ_j |q_j(0)| (R,).
        budget: cause -> Σ_j |its part of q_j − q_j(0)| (R,).
        signed: cause -> Σ_j its part (R,).
        broken: the first recorded step at which ``moved`` exceeds 1 %, None when it never does.
    """

    name: str
    kind: str
    formula: str
    q: Floats
    moved: Floats
    budget: Mapping[str, Floats]
    signed: Mapping[str, Floats]
    broken: int | None

    @property
    def cause(self) -> str:
        """What moved it most in the end."""
        return max(self.budget, key=lambda cause: self.budget[cause][-1])


@dataclass(frozen=True)
class Audit:
    """What an audited training came to.

    Attributes:
        steps: recorded steps (R,).
        steps_per_epoch: to turn steps into epochs.
        sites: the laws.
        residual: what the causes leave unexplained, relative, largest.
        violation: the rule's own part, relative, largest: 0 when the backward pass is what it claims to be.
        epochs: loss and accuracy per epoch.
        agreements: cosines with backpropagation before the first and after every epoch.
        guarantees: the corollary's bounds at the end, with forecasts from the last tenth of the run.
        reasons: weights without a law, and why.
        unknown: operations that the derivation does not know.
    """

    steps: NDArray[np.int64]
    steps_per_epoch: int
    sites: Sequence[Site]
    residual: float
    violation: float
    epochs: Sequence[Epoch]
    agreements: Sequence[Agreement]
    guarantees: Sequence[Guarantee]
    reasons: Mapping[str, str]
    unknown: Sequence[str]


class _Watcher:
    """The `lawful.training.observer.Observer` of an audit."""

    def __init__(self, epochs: int, progress: Callable[[float, str], None], measure: Callable[[], None]) -> None:
        self._epochs, self._progress, self._measure = epochs, progress, measure

    def started(self, done: int, epochs: int) -> None:
        """Measures before the first step."""
        self._measure()

    def stepped(self, epoch: int, fraction: float, loss: float) -> None:
        """Moves the bar."""
        self._progress((epoch - 1 + fraction) / self._epochs, f"epoch {epoch}, loss {loss:.3g}")

    def finished(self, record: Epoch) -> None:
        """Measures after an epoch."""
        self._measure()

    def closed(self) -> None:
        """Does nothing."""


def _silent(fraction: float, text: str) -> None:
    pass


def audit(settings: Settings, progress: Callable[[float, str], None] = _silent) -> Audit:
    """Train by ``settings``, in float64 so that the books close to rounding, with every law on the ledger.

    Raises:
        NoLawError: the model has no law that could be watched.
        DivergenceError: the loss is no longer finite.
    """
    training = Training(settings)
    training.model.double()
    if not training.data.is_text:
        data = training.data
        training.data = replace(data, x=data.x.double(), x_test=data.x_test.double())
    laws = laws_of(training.model, (training.data.x[:2],), output="softmax")
    watched = laws.of_kind("neuron", "scale", "shift")
    if not len(watched):
        why = "; ".join(dict.fromkeys(laws.reasons.values()))
        raise NoLawError(f"model {settings.model!r} under rule {settings.rule!r} has no law to watch: {why}")
    per_epoch = math.ceil(len(training.data.x) / settings.batch)
    every = max(1, settings.epochs * per_epoch // RECORDS)
    ledger = Ledger(training.model, training.optimizer, watched, record_every=every)
    x, y = training.data.x[:_PROBE], training.data.y[:_PROBE]
    found: list[Agreement] = []
    watcher = _Watcher(
        settings.epochs,
        progress,
        lambda: found.append(agreement(training.model, lambda model: training._loss(model, x, y))),
    )
    with ledger:
        epochs = training.run(None, [watcher])
    return Audit(
        steps=np.array([0, *(step for step, _, _ in ledger.history)], dtype=np.int64),
        steps_per_epoch=per_epoch,
        sites=_sites(ledger),
        residual=float(ledger.residual.max()),
        violation=float(ledger.violation.max()),
        epochs=epochs,
        agreements=found,
        guarantees=guarantees(ledger, window=max(every, ledger.steps // 10)),
        reasons=laws.reasons,
        unknown=laws.unknown,
    )


def _sites(ledger: Ledger) -> list[Site]:
    causes = [RULE, FINITE, *(cause for cause in ledger.parts if cause not in (RULE, FINITE))]
    q = torch.stack([ledger.start, *(values for _, values, _ in ledger.history)]).numpy()
    zero = torch.zeros_like(ledger.start)
    parts = {c: torch.stack([zero, *(p.get(c, zero) for _, _, p in ledger.history)]).numpy() for c in causes}
    steps = [0, *(step for step, _, _ in ledger.history)]
    sites, at = [], 0
    for law in ledger.laws:
        own = slice(at, at := at + len(law.names))
        moved = np.abs(q[:, own] - q[0, own]).sum(1) / max(float(np.abs(q[0, own]).sum()), 1e-300)
        over = np.nonzero(moved > BROKEN)[0]
        sites.append(
            Site(
                name=law.name,
                kind=law.kind,
                formula=law.formula,
                q=q[:, own].sum(1),
                moved=moved,
                budget={cause: np.abs(part[:, own]).sum(1) for cause, part in parts.items()},
                signed={cause: part[:, own].sum(1) for cause, part in parts.items()},
                broken=steps[over[0]] if len(over) else None,
            )
        )
    return sites
