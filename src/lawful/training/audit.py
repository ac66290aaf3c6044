"""A training run with its laws on the ledger: what moved each of them, when, and how far the rule is from backprop."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from lawful.conservation.base import LawSet
from lawful.conservation.derive import laws_of
from lawful.errors import NoLawError
from lawful.ledger.causes import DECAY, MOMENTUM
from lawful.ledger.ledger import FINITE, RULE, Ledger
from lawful.ledger.reading import movements
from lawful.measures.angles import weight_angles
from lawful.measures.deltas import agreement
from lawful.measures.guarantee import Guarantee, guarantees
from lawful.training import checkpoint
from lawful.training.heavy_ball import Predictions, constants
from lawful.training.loop import Training
from lawful.training.observer import Epoch
from lawful.training.settings import Settings

Floats = NDArray[np.float64]
RECORDS: Final = 200
"""Points in time at which the books are read."""
BROKEN: Final = 0.01
"""A law counts as broken when its numbers have moved by this share of their start, summed over channels."""
_PROBE: Final = 256
_BOOKS: Final = "books-"


@dataclass(frozen=True)
class Site:
    """One law along the run, its numbers summed over channels; R records, the first of them step 0.

    Attributes:
        name: the site.
        kind: "neuron", "scale", "shift" or "bias".
        formula: q in print.
        q: Σ_j q_j (R,).
        start: Σ_j |q_j(0)|, what shares are relative to; of a law that starts at zero the furthest that it came.
        moved: Σ_j |q_j − q_j(0)| / start (R,).
        budget: cause -> Σ_j |its part of q_j − q_j(0)| (R,).
        signed: cause -> Σ_j its part (R,).
        broken: the first recorded step at which ``moved`` exceeds 1 %, None when it never does.
        predicted: Σ_j q_j by :class:`lawful.training.heavy_ball.HeavyBall` (R,), None where theory has no closed form.
        missed: how far q_j was from its prediction, relative to |q_j(0)| + Σ|parts|, largest over channels and records.
    """

    name: str
    kind: str
    formula: str
    q: Floats
    start: float
    moved: Floats
    budget: Mapping[str, Floats]
    signed: Mapping[str, Floats]
    broken: int | None
    predicted: Floats | None
    missed: float

    @property
    def cause(self) -> str:
        """What moved it most in the end."""
        return max(self.budget, key=lambda cause: self.budget[cause][-1])

    @property
    def shares(self) -> list[tuple[str, float]]:
        """(cause, its share of everything that moved the law) at the end, the largest first."""
        total = sum(float(part[-1]) for part in self.budget.values()) or 1.0
        return sorted(((cause, float(part[-1]) / total) for cause, part in self.budget.items()), key=lambda s: -s[1])


@dataclass(frozen=True)
class Alignment:
    """How far the rule is from backpropagation after some epochs, layer by layer.

    Attributes:
        step: steps made so far.
        angles: weight -> ∠(W, B) in degrees.
        deltas: module -> cos(δ, δ_bp).
        gradients: parameter -> cos(g, g_bp).
        guarantees: law -> (Σ_j k⟨W, B⟩_j, its guaranteed bound −Σ_j q_j).
    """

    step: int
    angles: Mapping[str, float]
    deltas: Mapping[str, float]
    gradients: Mapping[str, float]
    guarantees: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Audit:
    """What an audited training came to.

    Attributes:
        steps: recorded steps (R,).
        steps_per_epoch: to turn steps into epochs.
        sites: the laws.
        constants: (λ, β) of heavy-ball SGD, None for another optimiser.
        residual: what the causes leave unexplained, relative, largest.
        violation: the rule's own part, relative, largest: 0 when the backward pass is what it claims to be.
        epochs: loss and accuracy per epoch.
        alignments: distance from backpropagation before the first and after every epoch.
        guarantees: the corollary's bounds at the end, with forecasts from the last tenth of the run.
        reasons: weights without a law, and why.
        unknown: operations that the derivation does not know.
    """

    steps: NDArray[np.int64]
    steps_per_epoch: int
    sites: Sequence[Site]
    constants: tuple[float, float] | None
    residual: float
    violation: float
    epochs: Sequence[Epoch]
    alignments: Sequence[Alignment]
    guarantees: Sequence[Guarantee]
    reasons: Mapping[str, str]
    unknown: Sequence[str]


class _Watcher:
    """The `lawful.training.observer.Observer` of an audit; keeps the books beside every checkpoint of the training."""

    def __init__(
        self, training: Training, ledger: Ledger, progress: Callable[[float, str], None], out: Path | None
    ) -> None:
        self.training, self.ledger, self.progress, self.out = training, ledger, progress, out
        self.predictions = Predictions(ledger, training.optimizer)
        self.alignments: list[Alignment] = []

    def started(self, done: int, epochs: int) -> None:
        """Measures before the first step."""
        if not done:
            self._measure()

    def stepped(self, epoch: int, fraction: float, loss: float) -> None:
        """Moves the predictions and the bar."""
        self.predictions.step()
        self.progress((epoch - 1 + fraction) / self.training.settings.epochs, f"epoch {epoch}, loss {loss:.3g}")

    def finished(self, record: Epoch) -> None:
        """Measures after an epoch."""
        self._measure()
        if self.out is not None:
            self._save(self.out, record.epoch)

    def closed(self) -> None:
        """Does nothing."""

    def _measure(self) -> None:
        training = self.training
        x, y = training.data.x[:_PROBE], training.data.y[:_PROBE]
        found = agreement(training.model, lambda model: training._loss(model, x, y))
        self.alignments.append(
            Alignment(
                self.ledger.steps,
                weight_angles(training.model),
                found.deltas,
                found.gradients,
                {g.law: (float(g.layer.alignment), float(g.layer.bound)) for g in guarantees(self.ledger)},
            )
        )

    def _save(self, out: Path, epoch: int) -> None:
        state = {
            "ledger": self.ledger.state_dict(),
            "predictions": self.predictions.state(),
            "alignments": [asdict(one) for one in self.alignments],
        }
        checkpoint.save(state, _books(out, epoch))
        for old in sorted(out.glob(f"{_BOOKS}*"))[:-2]:
            shutil.rmtree(old)

    def restore(self, folder: Path) -> None:
        """Open the books where they were; the ledger must be in use."""
        state = checkpoint.load(folder)
        self.ledger.load_state_dict(state["ledger"])
        self.predictions.restore(state["predictions"])
        self.alignments = [Alignment(**one) for one in state["alignments"]]


def _books(out: Path, epoch: int) -> Path:
    return out / f"{_BOOKS}{epoch:05d}"


def _last_whole(out: Path | None, epochs: int) -> int:
    """The newest epoch of which both the training and the books are kept; 0 when there is none."""
    kept = [
        e for e in range(1, epochs + 1) if out and checkpoint.folder_for(out, e).exists() and _books(out, e).exists()
    ]
    return max(kept, default=0)


def _silent(fraction: float, text: str) -> None:
    pass


def audit(settings: Settings, progress: Callable[[float, str], None] = _silent, out: Path | None = None) -> Audit:
    """Train by ``settings``, in float64 so that the books close to rounding, with every law on the ledger.

    Args:
        settings: what to train.
        progress: told the share that is done, and a few words.
        out: a folder for checkpoints: the same call goes on after the last whole epoch, to the same numbers.

    Raises:
        NoLawError: the model has no law that could be watched.
        DivergenceError: the loss is no longer finite.
    """
    training, laws, watched = _prepared(settings)
    done = _last_whole(out, settings.epochs)
    if out is not None and done:
        training.restore(checkpoint.folder_for(out, done))
    per_epoch = math.ceil(len(training.data.x) / settings.batch)
    every = max(1, settings.epochs * per_epoch // RECORDS)
    with Ledger(training.model, training.optimizer, watched, record_every=every) as ledger:
        watcher = _Watcher(training, ledger, progress, out)
        if out is not None and done:
            watcher.restore(_books(out, done))
        epochs = training.run(out, [watcher])
    return Audit(
        steps=np.array([0, *(step for step, _, _ in ledger.history)], dtype=np.int64),
        steps_per_epoch=per_epoch,
        sites=_sites(ledger, watcher.predictions),
        constants=constants(training.optimizer),
        residual=float(ledger.residual.max()),
        violation=float(ledger.violation.max()),
        epochs=epochs,
        alignments=watcher.alignments,
        guarantees=guarantees(ledger, window=max(every, ledger.steps // 10)),
        reasons=laws.reasons,
        unknown=laws.unknown,
    )


def _prepared(settings: Settings) -> tuple[Training, LawSet, LawSet]:
    """The training in float64, all laws of its model, and those that are watched."""
    training = Training(settings)
    training.model.double()
    if not training.data.is_text:
        data = training.data
        training.data = replace(data, x=data.x.double(), x_test=data.x_test.double())
    laws = laws_of(training.model, (training.data.x[:2],), output="softmax")
    watched = laws.of_kind("neuron", "scale", "shift", "bias")
    if not len(watched):
        why = "; ".join(dict.fromkeys(laws.reasons.values()))
        raise NoLawError(f"model {settings.model!r} under rule {settings.rule!r} has no law to watch: {why}")
    return training, laws, watched


def _sites(ledger: Ledger, predictions: Predictions) -> list[Site]:
    causes = [RULE, FINITE, *(cause for cause in ledger.parts if cause not in (RULE, FINITE))]
    q = torch.stack([ledger.start, *(values for _, values, _ in ledger.history)]).numpy()
    zero = torch.zeros_like(ledger.start)
    parts = {c: torch.stack([zero, *(p.get(c, zero) for _, _, p in ledger.history)]).numpy() for c in causes}
    steps = [0, *(step for step, _, _ in ledger.history)]
    scale = torch.where(ledger.scale <= ledger.rounding(), torch.inf, ledger.scale).numpy()  # zero, and has stayed so
    sites, at = [], 0
    shares = movements(ledger, torch.from_numpy(q))
    for i, (law, (start, share)) in enumerate(zip(ledger.laws, shares, strict=True)):
        own = slice(at, at := at + len(law.names))
        moved = share.numpy()
        over = np.nonzero(moved > BROKEN)[0]
        signed = {cause: part[:, own] for cause, part in parts.items() if part[:, own].any() or cause in (RULE, FINITE)}
        form = None
        if i in predictions.history and set(signed) <= {RULE, FINITE, DECAY, MOMENTUM}:
            form = torch.stack(predictions.history[i]).numpy()
        off = np.zeros_like(scale[own]) if form is None else np.abs(form - q[:, own]).max(0) / scale[own]
        sites.append(
            Site(
                name=law.name,
                kind=law.kind,
                formula=law.formula,
                q=q[:, own].sum(1),
                start=start,
                moved=moved,
                budget={cause: np.abs(part).sum(1) for cause, part in signed.items()},
                signed={cause: part.sum(1) for cause, part in signed.items()},
                broken=steps[over[0]] if len(over) else None,
                predicted=None if form is None else form.sum(1),
                missed=float(off.max()),
            )
        )
    return sites
