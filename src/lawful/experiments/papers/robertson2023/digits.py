"""Real data: handwritten digits learned by feedback alignment and by backpropagation, with the laws on the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lawful.attachment.attachment import attach
from lawful.conservation.derive import laws_of
from lawful.data.digits import Classification, digits
from lawful.errors import DivergenceError
from lawful.experiments.claims import Claim
from lawful.experiments.paper import Progress
from lawful.experiments.papers.robertson2023.laboratory import ROUNDING
from lawful.experiments.papers.robertson2023.settings import Settings
from lawful.experiments.papers.robertson2023.shorthand import band, negligible, spread
from lawful.experiments.records import Figure, Panel, Section
from lawful.flows.activations import Floats
from lawful.ledger.ledger import Ledger
from lawful.measures.angles import gradient_angles, weight_angles
from lawful.rules.backprop import Backprop
from lawful.rules.base import Rule
from lawful.rules.feedback_alignment import FeedbackAlignment

HIDDEN: Final = (100, 50)
BATCH: Final = 32
LR: Final = 0.1
_MAX_SEEDS = 3
_EXAMPLES = 256
"""Training images on which the gradient angle is measured."""


@dataclass(frozen=True)
class Task:
    """A way to read the digits.

    Attributes:
        title: for headings.
        labels: a key of :data:`lawful.data.digits.TASKS`.
        outputs: output units.
        loss: of logits and class numbers.
        decide: logits to class numbers.
        chance: accuracy of the most frequent class, roughly.
    """

    title: str
    labels: str
    outputs: int
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    decide: Callable[[torch.Tensor], torch.Tensor]
    chance: float


def _binary_loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits[:, 0], y.to(logits.dtype))


TASKS: Final[Mapping[str, Task]] = {
    "binary": Task("odd or even (one output)", "parity", 1, _binary_loss, lambda z: (z[:, 0] > 0).long(), 0.5),
    "ten": Task("ten classes", "digit", 10, F.cross_entropy, lambda z: z.argmax(1), 0.1),
}


RULES: Final[Mapping[str, tuple[str, Callable[[int], Rule]]]] = {
    "fa": ("feedback alignment", lambda seed: FeedbackAlignment(seed=seed)),
    "backprop": ("backpropagation", lambda seed: Backprop()),
}


@dataclass(frozen=True)
class Training:
    """One network trained with one rule.

    Attributes:
        accuracy: on the test images after each epoch, and before the first (epochs + 1,).
        weight_angle: ∠(W, B) in degrees per layer that an error travels through (epochs + 1, layers).
        gradient_angle: the angle between the rule's update and backpropagation's, of the hidden weights (same shape).
        num_test: number of test images.
        residual: largest relative amount that the ledger's causes leave unexplained, over all neuron laws.
        violation: largest relative part that the rule itself contributes: zero when the law holds.
        drift: largest relative change of a neuron's quantity, all of it finite steps.
    """

    accuracy: Floats
    weight_angle: Floats
    gradient_angle: Floats
    num_test: int
    residual: float
    violation: float
    drift: float


def multilayer_perceptron(outputs: int, seed: int) -> nn.Sequential:
    """64-100-50-outputs with ReLU and biases, float64, PyTorch's own initialisation drawn from ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    widths = (64, *HIDDEN, outputs)
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
        layer = nn.utils.skip_init(nn.Linear, fan_in, fan_out, dtype=torch.float64)
        bound = fan_in**-0.5
        for p in layer.parameters():
            nn.init.uniform_(p, -bound, bound, generator=generator)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train(task: Task, rule: Rule, data: Classification, epochs: int, seed: int) -> Training:
    """Minibatch SGD with the neuron laws on the ledger.

    Raises:
        DivergenceError: a non-finite loss.
    """
    model = multilayer_perceptron(task.outputs, seed)
    attach(model, rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    x, y, x_test, y_test = (torch.from_numpy(part) for part in (data.x_train, data.y_train, data.x_test, data.y_test))
    generator = torch.Generator().manual_seed(seed)
    accuracy, weights, gradients = [], [], []

    def measure() -> None:
        with torch.no_grad():
            accuracy.append(float((task.decide(model(x_test)) == y_test).double().mean()))
        angles = weight_angles(model)
        weights.append([angles[name] for name in ("2.weight", "4.weight")])
        found = gradient_angles(model, lambda net: task.loss(net(x[:_EXAMPLES]), y[:_EXAMPLES]))
        gradients.append([found[name] for name in ("0.weight", "2.weight")])

    measure()
    with Ledger(model, optimizer, laws_of(model, (x[:2],)).of_kind("neuron")) as ledger:
        for _ in range(epochs):
            for batch in torch.randperm(len(x), generator=generator).split(BATCH):
                optimizer.zero_grad()
                loss = task.loss(model(x[batch]), y[batch])
                if not torch.isfinite(loss):
                    raise DivergenceError(f"digits: the loss is no finite number with lr {LR:g}")
                loss.backward()
                optimizer.step()
            measure()
    change = (ledger.values() - ledger.start).abs() / ledger.scale
    return Training(
        accuracy=np.array(accuracy),
        weight_angle=np.array(weights),
        gradient_angle=np.array(gradients),
        num_test=len(y_test),
        residual=float(ledger.residual.max()),
        violation=float(ledger.violation.max()),
        drift=float(change.max()),
    )


def stage(settings: Settings, seed: int, progress: Progress) -> Section:
    """Both tasks with both rules."""
    seeds = min(settings.seeds, _MAX_SEEDS)
    jobs = [(t, r, s) for t in TASKS for r in RULES for s in range(seeds)]
    runs: dict[tuple[str, str], list[Training]] = {}
    for at, (t, r, s) in enumerate(jobs):
        progress.update(at / len(jobs), f"{TASKS[t].title}, {RULES[r][0]}, seed {s}")
        data = digits(TASKS[t].labels, seed=1000 * seed + s)
        one = train(TASKS[t], RULES[r][1](1000 * seed + s), data, settings.digits_epochs, 1000 * seed + s)
        runs.setdefault((t, r), []).append(one)
    return Section(
        id="digits",
        title="Real data: the laws while a ReLU network learns digits",
        paper_says=(
            "Theorem 5.1 holds for ReLU networks on any data and loss; alignment with the feedback weights is "
            "what makes "
            "feedback alignment learn. The paper shows Gaussian data only."
        ),
        measured=_measured(runs),
        equations=(
            r"q_j=\tfrac12\|W_i[j,:]\|^2+\tfrac12b_i[j]^2-\langle W_{i+1}[:,j],B_{i+1}[:,j]\rangle,\qquad"
            r" q_j(T)-q_j(0)=\tfrac12\sum_{s<T}\|\Delta_s(W_i[j,:],b_i[j])\|^2",
        ),
        claims=[claim for (t, r), group in runs.items() for claim in _claims(t, r, group)],
        figures=(_accuracy_figure(runs), _angle_figure(runs)),
        arrays={
            f"{t}.{r}.{name}": np.array([getattr(one, name) for one in group])
            for (t, r), group in runs.items()
            for name in ("accuracy", "weight_angle", "gradient_angle")
        },
    )


def _better_than_chance(chance: float, n: int) -> float:
    return float(f"{chance + 4 * (chance * (1 - chance) / n) ** 0.5:.3f}")


def _claims(t: str, r: str, group: list[Training]) -> list[Claim]:
    where = f"Digits, {TASKS[t].title}, {RULES[r][0]}"
    claims = [
        negligible(
            f"digits.{t}.{r}.violation",
            "Theorem 5.1",
            f"{where}: minibatch SGD in PyTorch, biases included: the rule itself changes no neuron's quantity "
            "(relative, largest).",
            max(one.violation for one in group),
            ROUNDING,
        ),
        negligible(
            f"digits.{t}.{r}.ledger",
            "Theorem 5.1",
            f"{where}: the ledger of finite steps explains every neuron's change (relative remainder, largest).",
            max(one.residual for one in group),
            ROUNDING,
        ),
        Claim.at_least(
            f"digits.{t}.{r}.learns",
            "beyond the paper",
            f"{where}: it learns; smallest test accuracy over seeds, against chance plus four standard errors.",
            min(float(one.accuracy[-1]) for one in group),
            _better_than_chance(TASKS[t].chance, group[0].num_test),
        ),
    ]
    if r == "fa":
        claims.append(
            Claim.at_most(
                f"digits.{t}.alignment",
                "Section 1",
                f"{where}: the update of the last hidden layer turns towards backpropagation's (angle in degrees "
                f"at the "
                "end, largest over seeds).",
                max(float(one.gradient_angle[-1, 1]) for one in group),
                90.0,
            )
        )
    return claims


def _measured(runs: dict[tuple[str, str], list[Training]]) -> str:
    parts = []
    for (t, r), group in runs.items():
        accuracy = spread([100 * float(one.accuracy[-1]) for one in group], digits=3)
        text = f"{TASKS[t].title}, {RULES[r][0]}: test accuracy {accuracy} %"
        if r == "fa":
            before = spread([float(one.gradient_angle[0, 1]) for one in group])
            after = spread([float(one.gradient_angle[-1, 1]) for one in group])
            text += f"; angle to backpropagation's update in the last hidden layer {before}° before, {after}° after"
        parts.append(text + ".")
    worst = max(max(one.violation, one.residual) for group in runs.values() for one in group)
    parts.append(
        f"Every neuron's quantity is explained to {worst:.0e} by its finite steps, minibatches and biases "
        f"included; along "
        "the way the quantities themselves move, as the learning rate is not small."
    )
    return "\n\n".join(parts)


def _accuracy_figure(runs: dict[tuple[str, str], list[Training]]) -> Figure:
    panels = []
    for t, task in TASKS.items():
        lines = tuple(
            band(
                label,
                np.arange(len(runs[t, r][0].accuracy), dtype=np.float64),
                [100 * one.accuracy for one in runs[t, r]],
            )
            for r, (label, _) in RULES.items()
        )
        panels.append(Panel(task.title, "epoch", "test accuracy (%)", lines))
    return Figure(
        "digits-accuracy",
        "Digits: feedback alignment against backpropagation",
        f"64-100-50 ReLU networks with biases, SGD with lr {LR:g} and batches of {BATCH}; median and range over seeds.",
        panels,
    )


def _angle_figure(runs: dict[tuple[str, str], list[Training]]) -> Figure:
    panels = []
    for t, task in TASKS.items():
        group = runs[t, "fa"]
        epochs = np.arange(len(group[0].accuracy), dtype=np.float64)
        lines = [
            band(f"update of W{i + 1} vs backprop", epochs, [one.gradient_angle[:, i] for one in group], color=i)
            for i in range(2)
        ]
        lines += [
            band(f"W{i + 2} vs B{i + 2}", epochs, [one.weight_angle[:, i] for one in group], style="--", color=i)
            for i in range(2)
        ]
        panels.append(Panel(task.title, "epoch", "angle (degrees)", lines))
    return Figure(
        "digits-angles",
        "Digits: alignment under feedback alignment",
        "Below 90 degrees the update has a component along backpropagation's. Median and range over seeds.",
        panels,
    )
