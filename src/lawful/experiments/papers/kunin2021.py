"""Kunin et al. 2021: what weight decay, momentum and finite steps make of the laws, predicted and laid over SGD."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lawful.attachment.attachment import attach
from lawful.conservation.base import Law
from lawful.conservation.derive import laws_of
from lawful.errors import DivergenceError, SettingError
from lawful.experiments.claims import Claim
from lawful.experiments.paper import Paper, Progress
from lawful.experiments.papers.robertson2023.shorthand import negligible
from lawful.experiments.records import Figure, Line, Panel, Section
from lawful.flows.activations import Floats
from lawful.rules.feedback_alignment import FeedbackAlignment

ROUNDING: Final = 1e-11
"""Relative remainder allowed to an exact recursion over some thousand steps in float64."""
EPS: Final = 1e-12
"""Batch norm's epsilon here: the scale law is exact as it vanishes."""
_LIMITS: Final = {"n": (8, 100_000), "steps": (16, 100_000), "seeds": (1, 100), "batch": (2, 100_000)}


@dataclass(frozen=True)
class Settings:
    """One small classifier: Linear, batch norm, ReLU, Linear, ReLU, Linear, cross-entropy.

    Args:
        n: Examples.
        batch: Examples in a step.
        lr: Learning rate.
        steps: Steps; time is t = lr · step.
        decay: Weight decay λ.
        momentum: β of heavy-ball SGD.
        seeds: Independent draws of data and weights.
    """

    n: int = 256
    batch: int = 64
    lr: float = 0.05
    steps: int = 1600
    decay: float = 0.02
    momentum: float = 0.9
    seeds: int = 3

    def validate(self) -> None:
        """Check ranges.

        Raises:
            SettingError: one line that names the key, the allowed values and what came.
        """
        for name, (low, high) in _LIMITS.items():
            if not low <= getattr(self, name) <= high:
                raise SettingError(f"{name} must be an integer from {low} to {high}; got {getattr(self, name)!r}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "float" and not (math.isfinite(value) and value > 0):
                raise SettingError(f"{field.name} must be a finite number > 0; got {value!r}")
        if self.momentum >= 1:
            raise SettingError(f"momentum must lie between 0 and 1; got {self.momentum!r}")


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


# -- predictions ----------------------------------------------------------------------------------------------------


def recursion(record: Record, power: int, *, lr: float, decay: float, momentum: float = 0.0) -> Floats:
    """Predict q from q(0) and the finite-step terms alone, exact for heavy-ball SGD: no gradient enters.

    With r = ⟨∇q, Δ⟩ and q of degree p, Δ_s = βΔ_{s−1} − lr(g_s + λθ_s) and ⟨∇q, g⟩ = 0 give
    r_s = β(r_{s−1} + 2d_{s−1}) − p·lr·λ·q_s and q_{s+1} = q_s + r_s + d_s (d = 0 when p = 1).

    >>> flat = Record(np.arange(3.0), np.array([[8.0], [0.0], [0.0]]), np.zeros((2, 1)))
    >>> recursion(flat, 1, lr=1.0, decay=0.5).ravel().tolist()
    [8.0, 4.0, 2.0]
    """
    q, r, last = [record.q[0]], np.zeros_like(record.q[0]), np.zeros_like(record.q[0])
    for d in record.d:
        r = momentum * (r + 2 * last) - power * lr * decay * q[-1]
        q.append(q[-1] + r + d)
        last = d
    return np.array(q)


def integral(record: Record, power: int, *, decay: float) -> Floats:
    """The paper's form for SGD with decay: e^{−pλt}(q(0) + Σ e^{pλt_s} d_s), d_s taken without its decay part."""
    rate = power * decay
    pure = record.d - _decay_part(record, decay) if power == 2 else record.d
    grown = np.cumsum(np.exp(rate * record.t[:-1, None]) * pure, axis=0)
    return np.exp(-rate * record.t)[:, None] * (record.q[0] + np.concatenate([0 * grown[:1], grown]))


def _decay_part(record: Record, decay: float) -> Floats:
    """Of the step −lr(g + λθ) the part of q's second-order term that is decay's: (lr·λ)² q, as ⟨∇q, g⟩ = 0."""
    return (np.diff(record.t)[:, None] * decay) ** 2 * record.q[:-1]


def oscillator(t: Floats, start: Floats, *, lr: float, decay: float, momentum: float) -> Floats:
    """The paper's ½lr(1+β) s̈ + (1−β) ṡ + λs = 0 from rest: a damped oscillator for a translation charge.

    >>> oscillator(np.array([0.0]), np.array([2.0]), lr=0.1, decay=0.1, momentum=0.9).ravel().tolist()
    [2.0]
    """
    roots = np.roots([0.5 * lr * (1 + momentum), 1 - momentum, decay]).astype(complex)
    a, b = roots
    shape = ((b * np.exp(a * t) - a * np.exp(b * t)) / (b - a)).real
    return shape[:, None] * start


def _off(record: Record, predicted: Floats) -> float:
    return float(np.abs(record.q - predicted).max()) / record.size


# -- stages ---------------------------------------------------------------------------------------------------------


def _runs(
    settings: Settings, seed: int, progress: Progress, momentum: float, halvings: Sequence[int]
) -> dict[int, list[dict[str, Record]]]:
    found: dict[int, list[dict[str, Record]]] = {h: [] for h in halvings}
    for at, (h, number) in enumerate((h, number) for h in halvings for number in range(settings.seeds)):
        progress.update(at / (len(halvings) * settings.seeds), f"lr {settings.lr / h:g}, draw {number}")
        model, lr = classifier(seed, number), settings.lr / h
        laws = {key: chosen_law(model, symmetry) for key, symmetry in SYMMETRIES.items()}
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=settings.decay)
        rng = np.random.default_rng([seed, number])
        found[h].append(train(model, optimizer, laws, settings, rng, lr=lr, num_steps=settings.steps * h))
    return found


def _exact(stage: str, how: str, settings: Settings, runs: Sequence[dict[str, Record]], momentum: float) -> list[Claim]:
    return [
        negligible(
            f"{stage}.{key}.exact",
            "Section 5",
            f"{how}: {symmetry.text} follows its recursion, in which no gradient direction enters "
            "(relative, largest over draws, channels and steps).",
            max(
                _off(run[key], recursion(run[key], symmetry.power, lr=settings.lr, decay=settings.decay,
                                         momentum=momentum))
                for run in runs
            ),
            symmetry.tolerance,
        )
        for key, symmetry in SYMMETRIES.items()
    ]  # fmt: skip


def decay_stage(settings: Settings, seed: int, progress: Progress) -> Section:
    """SGD with weight decay: the three symmetries, the exact recursion, and the paper's integral form."""
    runs = _runs(settings, seed, progress, 0.0, (1, 2))
    claims = _exact("decay", "SGD with weight decay", settings, runs[1], 0.0)
    for key, symmetry in SYMMETRIES.items():
        off = {h: [_off(r[key], integral(r[key], symmetry.power, decay=settings.decay)) for r in group]
               for h, group in runs.items()}  # fmt: skip
        order = math.log2(float(np.median(off[1])) / float(np.median(off[2])))
        claims.append(
            Claim.at_least(
                f"decay.{key}.integral",
                "Section 5",
                f"The exponential form of {symmetry.text} misses SGD by O(lr) or less: exponent between lr and lr/2.",
                order,
                0.75,
            )
        )
    first = runs[1][0]
    panels = [
        _panel(symmetry.title, first[key], {
            "exponential form": integral(first[key], symmetry.power, decay=settings.decay),
            "decay alone": np.exp(-symmetry.power * settings.decay * first[key].t)[:, None] * first[key].q[0],
        })
        for key, symmetry in SYMMETRIES.items()
    ]  # fmt: skip
    return Section(
        id="decay",
        title="Weight decay: charges fall exponentially, finite steps feed them",
        paper_says=(
            "Symmetries of the architecture give conserved charges of gradient flow. With weight decay $\\lambda$ a "
            "translation charge falls like $e^{-\\lambda t}$, scale and rescale charges like $e^{-2\\lambda t}$ plus "
            "an integral of squared gradients that finite learning rates add."
        ),
        measured=(
            f"{settings.seeds} classifiers with minibatch SGD. The exponential forms follow the run to O(lr); with the "
            "powers $(1-\\eta\\lambda)^s$ in place of exponentials the prediction is exact to rounding."
        ),
        equations=(
            r"q(t)=e^{-2\lambda t}\Big(q(0)+\tfrac{\eta}{2}\int_0^te^{2\lambda\tau}\big(\|g_p\|^2-\|g_c\|^2\big)d\tau"
            r"\Big),\qquad q_{s+1}=(1-\eta\lambda)^2q_s+\tfrac{\eta^2}{2}\big(\|g_p\|^2-\|g_c\|^2\big)",
        ),
        claims=claims,
        figures=(Figure("kunin-decay", "Predicted forms laid over SGD with weight decay", _CAPTION, panels),),
    )


_CAPTION: Final = "The channel that moves most in the first draw: measured, and predicted from q(0) and step sizes."


def _panel(title: str, record: Record, predictions: Mapping[str, Floats]) -> Panel:
    j = int(np.abs(record.q - record.q[0]).max(0).argmax())
    index = np.unique(np.linspace(0, len(record.t) - 1, 200).astype(int))
    lines = [Line("measured", record.t[index], record.q[index, j])]
    for (label, predicted), style in zip(predictions.items(), ("--", ":"), strict=False):
        lines.append(Line(label, record.t[index], predicted[index, j], style=style))
    return Panel(title, "time t = lr · step", "q", lines)


def momentum_stage(settings: Settings, seed: int, progress: Progress) -> Section:
    """Heavy-ball SGD with weight decay: exact recursions; the damped oscillator of the translation charge."""
    beta = settings.momentum
    runs = _runs(settings, seed, progress, beta, (1, 2))
    claims = _exact("momentum", "Momentum and weight decay", settings, runs[1], beta)
    off = [
        np.median([
            _off(r["translation"], oscillator(r["translation"].t, r["translation"].q[0], lr=settings.lr / h,
                                              decay=settings.decay, momentum=beta))
            for r in group
        ])
        for h, group in runs.items()
    ]  # fmt: skip
    claims.append(
        Claim.close(
            "momentum.translation.oscillator",
            "Section 5",
            "The damped oscillator misses the translation charge by O(lr): exponent between lr and lr/2.",
            math.log2(float(off[0] / off[1])),
            1.0,
            abs=0.25,
        )
    )
    first = runs[1][0]
    panels = []
    for key, symmetry in SYMMETRIES.items():
        exact = recursion(first[key], symmetry.power, lr=settings.lr, decay=settings.decay, momentum=beta)
        predictions = {"exact recursion": exact}
        if key == "translation":
            predictions["damped oscillator"] = oscillator(
                first[key].t, first[key].q[0], lr=settings.lr, decay=settings.decay, momentum=beta
            )
        panels.append(_panel(symmetry.title, first[key], predictions))
    return Section(
        id="momentum",
        title="Momentum: charges become oscillators",
        paper_says=(
            "With momentum $\\beta$ the translation charge is a damped harmonic oscillator driven by nothing; scale "
            "and rescale charges are driven by squared gradients."
        ),
        measured=(
            f"With β = {beta:g} the oscillator follows the translation charge to O(lr). All three charges obey an "
            "exact second-order recursion."
        ),
        equations=(
            r"\tfrac{\eta(1+\beta)}{2}\ddot s+(1-\beta)\dot s+\lambda s=0",
            r"r_s=\beta(r_{s-1}+2d_{s-1})-2\eta\lambda q_s,\qquad q_{s+1}=q_s+r_s+d_s",
        ),
        claims=claims,
        figures=(Figure("kunin-momentum", "Predicted forms laid over SGD with momentum and decay", _CAPTION, panels),),
    )


def feedback_stage(settings: Settings, seed: int, progress: Progress) -> Section:
    """Beyond the paper: feedback alignment keeps the rescale law, with decay λ below and 2λ above."""
    symmetry, records = SYMMETRIES["rescale"], []
    for number in range(settings.seeds):
        progress.update(number / settings.seeds, f"draw {number}")
        model = classifier(seed, number)
        attach(model, FeedbackAlignment(seed=1000 * seed + number))
        upper = list(model[5].parameters())
        lower = [p for p in model.parameters() if all(p is not u for u in upper)]
        groups = [{"params": lower}, {"params": upper, "weight_decay": 2 * settings.decay}]
        optimizer = torch.optim.SGD(groups, lr=settings.lr, weight_decay=settings.decay)
        rng = np.random.default_rng([seed, number])
        laws = {"rescale": chosen_law(model, symmetry)}
        run = train(model, optimizer, laws, settings, rng, lr=settings.lr, num_steps=settings.steps)
        records.append(run["rescale"])
    worst = max(_off(r, recursion(r, 2, lr=settings.lr, decay=settings.decay)) for r in records)
    first = records[0]
    alone = np.exp(-2 * settings.decay * first.t)[:, None] * first.q[0]
    return Section(
        id="feedback",
        title="Feedback alignment under weight decay",
        paper_says="Only gradients are considered.",
        measured=(
            "Feedback alignment is the gradient of nothing, yet its law decays as cleanly when the reading layer has "
            "twice the decay, since $\\langle W,B\\rangle$ is linear in $W$ where $\\frac12\\|W\\|^2$ is quadratic. "
            "Finite steps feed it."
        ),
        equations=(
            r"\tfrac12\|W_i[j]\|^2+\tfrac12b_i[j]^2-\langle W_{i+1}[:,j],B_{i+1}[:,j]\rangle\;\propto\;e^{-2\lambda t}",
        ),
        claims=[
            negligible(
                "feedback.rescale.exact",
                "beyond the paper",
                "Feedback alignment, decay λ below and 2λ above: q[s+1] = (1 − 2·lr·λ) q[s] + finite step (relative).",
                worst,
                ROUNDING,
            )
        ],
        figures=(
            Figure("kunin-feedback", "The feedback law under weight decay", _CAPTION, [
                _panel("feedback alignment", first, {
                    "exact recursion": recursion(first, 2, lr=settings.lr, decay=settings.decay), "decay alone": alone,
                }),
            ]),
        ),
    )  # fmt: skip


PAPER = Paper(
    id="kunin2021",
    title="Neural Mechanics: Symmetry and Broken Conservation Laws in Deep Learning Dynamics",
    citation=(
        "Daniel Kunin, Javier Sagastuy-Brena, Surya Ganguli, Daniel L. K. Yamins and Hidenori Tanaka, Neural "
        "Mechanics, "
        "ICLR 2021, arXiv:2012.04728"
    ),
    settings=Settings,
    quick={"seeds": 2, "steps": 600},
    stages={"decay": decay_stage, "momentum": momentum_stage, "feedback": feedback_stage},
)
"""The paper as ``lawful reproduce kunin2021`` runs it."""
