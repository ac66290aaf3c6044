"""The classifier, the three symmetries whose charges it has, and the charges along a run of SGD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lawful.conservation.base import Law
from lawful.conservation.derive import laws_of
from lawful.errors import DivergenceError
from lawful.experiments.paper import Progress
from lawful.experiments.papers.kunin2021.settings import Settings
from lawful.flows.activations import Floats

ROUNDING: Final = 1e-11
"""Relative remainder allowed to an exact recursion over some thousand steps in float64."""
EPS: Final = 1e-12
"""Batch norm's epsilon here: the scale law is exact as it vanishes."""


@dataclass(frozen=True)
class Symmetry:
    """One of the paper's three symmetries.

    Attributes:
        title: for headings.
        law: kind and site of the law in the classifier.
        power: q scales like θ to this power, so decay λ alone makes it fall like exp(−power·λt).
        text: q in words.
        tolerance: relative remainder allowed to the exact recursion.
    """

    title: str
    law: tuple[str, str]
    power: int
    text: str
    tolerance: float


SYMMETRIES: Final[Mapping[str, Symmetry]] = {
    "translation": Symmetry("translation (softmax)", ("shift", "5"), 1, "the sum over classes of W₃", ROUNDING),
    "scale": Symmetry("scale (batch norm)", ("scale", "0"), 2, "½|W₁[j]|² of a channel in front of batch norm", 1e-8),
    "rescale": Symmetry("rescale (ReLU)", ("neuron", "3"), 2, "½|W₂[j]|² + ½b₂[j]² − ½|W₃[:,j]|²", ROUNDING),
}


@dataclass(frozen=True)
class Record:
    """One law along one run of SGD.

    Attributes:
        t: lr · step (steps + 1,).
        q: the conserved numbers (steps + 1, channels).
        d: what every step adds by being finite, q's second-order part at the step taken (steps, channels).
    """

    t: Floats
    q: Floats
    d: Floats

    @property
    def size(self) -> float:
        """What a deviation is relative to: the largest |q(0)| + Σ|d| over channels."""
        return float((np.abs(self.q[0]) + np.abs(self.d).sum(0)).max())


def classifier(seed: int, number: int) -> nn.Sequential:
    """10-16-12-4 with batch norm and ReLU, float64."""
    torch.manual_seed(1000 * seed + number)
    net = nn.Sequential(
        nn.Linear(10, 16), nn.BatchNorm1d(16, eps=EPS), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)
    )
    return net.double()


def chosen_law(model: nn.Module, symmetry: Symmetry) -> Law:
    """The law of the classifier that belongs to a symmetry."""
    kind, site = symmetry.law
    x = torch.zeros(4, 10, dtype=torch.float64) + torch.arange(4.0)[:, None]
    found = [law for law in laws_of(model, (x,), output="softmax").of_kind(kind) if law.name == site]
    return next(law for law in found if f"{site}.weight" in law.parameters)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    laws: Mapping[str, Law],
    settings: Settings,
    rng: np.random.Generator,
    *,
    lr: float,
    num_steps: int,
) -> dict[str, Record]:
    """Minibatch SGD on labels of a random teacher; every law and its finite-step term at every step.

    Raises:
        DivergenceError: a non-finite loss.
    """
    x = torch.from_numpy(rng.standard_normal((settings.n, 10)))
    y = torch.from_numpy((x.numpy() @ rng.standard_normal((10, 4))).argmax(1))
    names = {name for law in laws.values() for name in law.parameters}
    tracked = {name: p for name, p in model.named_parameters() if name in names}
    q: dict[str, list[Floats]] = {key: [law.value(_now(tracked)).numpy()] for key, law in laws.items()}
    d: dict[str, list[Floats]] = {key: [] for key in laws}
    for _ in range(num_steps):
        rows = torch.from_numpy(rng.integers(0, settings.n, settings.batch))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[rows]), y[rows])
        if not torch.isfinite(loss):
            raise DivergenceError(f"the loss is no finite number: choose a smaller lr (--set lr={lr / 4:.2g})")
        loss.backward()
        before = _now(tracked)
        optimizer.step()
        after = _now(tracked)
        delta = {name: after[name] - before[name] for name in before}
        for key, law in laws.items():
            q[key].append(law.value(after).numpy())
            d[key].append(law.drift(before, delta).numpy())
    t = lr * np.arange(num_steps + 1, dtype=np.float64)
    return {key: Record(t, np.array(q[key]), np.array(d[key])) for key in laws}


def _now(tracked: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in tracked.items()}


def sgd_runs(
    settings: Settings, seed: int, progress: Progress, momentum: float, halvings: Sequence[int]
) -> dict[int, list[dict[str, Record]]]:
    """Every draw at every lr / h, h in ``halvings``, for the same flow time."""
    found: dict[int, list[dict[str, Record]]] = {h: [] for h in halvings}
    for at, (h, number) in enumerate((h, number) for h in halvings for number in range(settings.seeds)):
        progress.update(at / (len(halvings) * settings.seeds), f"lr {settings.lr / h:g}, draw {number}")
        model, lr = classifier(seed, number), settings.lr / h
        laws = {key: chosen_law(model, symmetry) for key, symmetry in SYMMETRIES.items()}
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=settings.decay)
        rng = np.random.default_rng([seed, number])
        found[h].append(train(model, optimizer, laws, settings, rng, lr=lr, num_steps=settings.steps * h))
    return found
