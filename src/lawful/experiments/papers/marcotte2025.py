"""Marcotte, Gribonval & Peyré 2025: the laws of convolutions, attention and residual blocks, watched during SGD."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lawful.attachment.attachment import attach
from lawful.conservation.base import LawSet
from lawful.conservation.derive import laws_of
from lawful.errors import DivergenceError
from lawful.experiments.claims import Claim
from lawful.experiments.paper import Paper, Progress
from lawful.experiments.papers.robertson2023.shorthand import band, negligible
from lawful.experiments.ranges import check_ranges
from lawful.experiments.records import Figure, Panel, Section
from lawful.flows.activations import Floats
from lawful.ledger.ledger import Ledger
from lawful.rules.backprop import Backprop
from lawful.rules.base import Rule
from lawful.rules.feedback_alignment import FeedbackAlignment

ROUNDING: Final = 1e-10
"""Relative remainder and violation allowed: what the ledger promises in float64."""
_LIMITS: Final = {"n": (4, 100_000), "steps": (16, 100_000), "seeds": (1, 100)}


@dataclass(frozen=True)
class Settings:
    """Small networks on Gaussian inputs with random targets.

    Args:
        n: Examples; every step uses half of them.
        lr: Learning rate of the longest steps; runs are repeated at lr/2 and lr/4 to the same time.
        steps: Steps at lr.
        seeds: Independent draws.
    """

    n: int = 32
    lr: float = 0.02
    steps: int = 100
    seeds: int = 3

    def validate(self) -> None:
        """Check ranges.

        Raises:
            SettingError: one line that names the key, the allowed values and what came.
        """
        check_ranges(self, _LIMITS)


class ConvolutionalBlock(nn.Module):
    """Two convolutions with a ReLU, averaged and read out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.Conv2d(5, 3, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (n, 2, 6, 6) to (n, 3)."""
        return self.conv2(F.relu(self.conv1(x))).mean((2, 3))


class AttentionLayer(nn.Module):
    """One softmax attention layer of two heads without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 8, bias=False) for _ in range(3))
        self.out = nn.Linear(8, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sequences (n, T, 6) to (n, T, 3)."""
        q, k, v = (m(x).unflatten(-1, (2, 4)).transpose(1, 2) for m in (self.query, self.key, self.value))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ResidualNet(nn.Module):
    """Two residual blocks between an input and an output map; without skips the same blocks in a chain."""

    def __init__(self, skip: bool = True) -> None:
        super().__init__()
        self.skip = skip
        self.inner = nn.Linear(5, 6)
        self.up1, self.down1 = nn.Linear(6, 7), nn.Linear(7, 6)
        self.up2, self.down2 = nn.Linear(6, 7), nn.Linear(7, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 5) to (n, 3)."""
        h = torch.tanh(self.inner(x))
        for up, down in ((self.up1, self.down1), (self.up2, self.down2)):
            y = down(F.relu(up(h)))
            h = h + y if self.skip else y
        return self.out(h)


@dataclass(frozen=True)
class Study:
    """One architecture.

    Attributes:
        make: builds the model.
        shape: of one input.
        kinds: the kinds of law looked at.
        count: how many independent numbers the paper's theorems give.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    kinds: tuple[str, ...]
    count: int


STUDIES: Final[Mapping[str, Study]] = {
    "conv": Study(ConvolutionalBlock, (2, 6, 6), ("neuron",), 5),
    # two heads, symmetric 4 × 4 matrices: 2 · 10 for (Q, K) and 2 · 10 for (V, O)
    "attention": Study(AttentionLayer, (4, 6), ("matrix",), 40),
    "skip": Study(ResidualNet, (5,), ("neuron",), 14),
    "no-skip": Study(lambda: ResidualNet(skip=False), (5,), ("neuron",), 26),
}
RULES: Final[Mapping[str, tuple[str, Callable[[int], Rule]]]] = {
    "backprop": ("backpropagation", lambda seed: Backprop()),
    "fa": ("feedback alignment", lambda seed: FeedbackAlignment(seed=seed)),
}


@dataclass(frozen=True)
class Run:
    """One training with the laws on the ledger.

    Attributes:
        t: lr · step (records,).
        drift: largest |q − q(0)| over laws, relative to |q(0)| (records,).
        norm: the largest relative change of a weight's squared norm, for comparison (records,).
        violation: the rule's own part, relative.
        residual: what the causes leave unexplained, relative.
        names: of the laws.
    """

    t: Floats
    drift: Floats
    norm: Floats
    violation: float
    residual: float
    names: tuple[str, ...]


def run(study: Study, rule: Rule, settings: Settings, seed: int, number: int, halving: int) -> Run:
    """Minibatch SGD on a random regression, at lr / halving to the same time.

    Raises:
        DivergenceError: a non-finite loss.
    """
    torch.manual_seed(1000 * seed + number)
    model = study.make().double()
    attach(model, rule)
    x = torch.randn(settings.n, *study.shape, dtype=torch.float64)
    with torch.no_grad():
        y = torch.randn_like(model(x))
    lr = settings.lr / halving
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    laws: LawSet = laws_of(model, (x[:2],)).of_kind(*study.kinds)
    start = {name: float(p.detach().square().sum()) for name, p in model.named_parameters()}
    changes = [0.0]
    generator = torch.Generator().manual_seed(1000 * seed + number)
    with Ledger(model, optimizer, laws, record_every=halving) as ledger:
        order = [torch.randperm(settings.n, generator=generator)[: settings.n // 2] for _ in range(settings.steps)]
        for step in range(settings.steps * halving):
            rows = order[step // halving]  # the same examples over the same time, whatever the step
            optimizer.zero_grad()
            loss = 0.5 * (model(x[rows]) - y[rows]).square().flatten(1).sum(1).mean()
            if not torch.isfinite(loss):
                raise DivergenceError(f"the loss is no finite number: choose a smaller lr (--set lr={lr / 4:.2g})")
            loss.backward()
            optimizer.step()
            if (step + 1) % halving == 0:
                now = {name: float(p.detach().square().sum()) for name, p in model.named_parameters()}
                changes.append(max(abs(now[name] - start[name]) / max(start.values()) for name in now))
    q = np.array([ledger.start.numpy(), *(values.numpy() for _, values, _ in ledger.history)])
    return Run(
        t=settings.lr * np.arange(len(q), dtype=np.float64),
        drift=np.abs(q - q[0]).max(1) / np.abs(q[0]).max(),
        norm=np.array(changes),
        violation=float(ledger.violation.max()),
        residual=float(ledger.residual.max()),
        names=laws.names,
    )


def _study(key: str, settings: Settings, seed: int, progress: Progress, says: str, title: str, formula: str) -> Section:
    halvings = (1, 2, 4)
    study = STUDIES[key]
    runs: dict[str, dict[int, list[Run]]] = {}
    total = len(RULES) * len(halvings) * settings.seeds
    for at, (r, h, number) in enumerate((r, h, s) for r in RULES for h in halvings for s in range(settings.seeds)):
        progress.update(at / total, f"{RULES[r][0]}, lr {settings.lr / h:g}, draw {number}")
        rule = RULES[r][1](1000 * seed + number)
        runs.setdefault(r, {}).setdefault(h, []).append(run(study, rule, settings, seed, number, h))
    count = len(runs["backprop"][1][0].names)
    claims = [
        Claim.close(f"{key}.count", "Sections 3 and 4", "Conserved numbers found in the traced model, against the "
                    "paper's theorems.", count, study.count, abs=0.5)
    ]  # fmt: skip
    for r, (name, _) in RULES.items():
        claims += _claims(key, r, name, runs[r])
    norm = max(float(one.norm.max()) for one in runs["backprop"][1])
    drift = max(float(one.drift.max()) for one in runs["backprop"][1])
    lines = {
        r: [band(f"law, lr / {h}", group[0].t[1:], [one.drift[1:] for one in group]) for h, group in found.items()]
        + [band("squared norms", found[1][0].t[1:], [one.norm[1:] for one in found[1]], style="--")]
        for r, found in runs.items()
    }
    panels = [
        Panel(RULES[r][0], "time t = lr · step", "largest relative change", lines[r], xscale="log", yscale="log")
        for r in RULES
    ]
    return Section(
        id=key,
        title=title,
        paper_says=says,
        measured=(
            f"With lr = {settings.lr:g} the laws move by at most {drift:.1e} under backpropagation while squared norms "
            f"of weights move by {norm:.1e}. All of it is finite steps, to rounding. Feedback alignment, which the "
            "paper does not treat, has as many laws."
        ),
        equations=(formula,),
        claims=claims,
        figures=(
            Figure(
                f"marcotte-{key}",
                "The drift of the laws halves with the learning rate",
                "Largest change over all laws, at three learning rates; dashed: largest change of a weight's squared "
                "norm. Median and range over draws.",
                panels,
            ),
        ),
    )


def _claims(key: str, r: str, name: str, runs: Mapping[int, list[Run]]) -> list[Claim]:
    source = "Section 5" if r == "backprop" else "beyond the paper"
    everything = [one for group in runs.values() for one in group]
    ends = [float(np.median([one.drift[-1] for one in group])) for group in runs.values()]
    return [
        negligible(f"{key}.{r}.violation", source, f"{name}: the gradient moves no law (relative, largest).",
                   max(one.violation for one in everything), ROUNDING),
        negligible(f"{key}.{r}.ledger", source, f"{name}: finite steps explain all of every law's change (relative "
                   "remainder, largest).", max(one.residual for one in everything), ROUNDING),
        Claim.close(f"{key}.{r}.order", source, f"{name}: at a fixed time the laws move by O(lr) (exponent between "
                    "lr/2 and lr/4, median over draws).", math.log2(ends[1] / ends[2]), 1.0, abs=0.25),
    ]  # fmt: skip


def convolution(settings: Settings, seed: int, progress: Progress) -> Section:
    """Convolutional ReLU blocks: one law per channel."""
    says = "A two-layer convolutional ReLU block conserves, per channel, the difference of its kernels' squared norms."
    formula = r"\|W_1[j,:,:,:]\|^2-\|W_2[:,j,:,:]\|^2=\mathrm{const}"
    return _study("conv", settings, seed, progress, says, "Convolutions: one law per channel", formula)


def attention(settings: Settings, seed: int, progress: Progress) -> Section:
    """Attention: a matrix per head for queries and keys, and one for values and outputs."""
    says = (
        "An attention layer conserves $QQ^T-KK^T$ and $VV^T-O^TO$ per head (in the convention where these maps act "
        "from the left), and nothing else."
    )
    formula = r"W_QW_Q^T-W_KW_K^T=\mathrm{const},\qquad W_VW_V^T-W_O^TW_O=\mathrm{const}\quad\text{per head}"
    return _study("attention", settings, seed, progress, says, "Attention: whole matrices per head", formula)


def skip(settings: Settings, seed: int, progress: Progress) -> Section:
    """Residual blocks: the laws of the block without its skip."""
    says = "A residual block has the same laws as the same block without its skip connection, inside any deep network."
    formula = r"\|W_{up}[j]\|^2+b_{up}[j]^2-\|W_{down}[:,j]\|^2=\mathrm{const}\quad\text{per block}"
    found = _study("skip", settings, seed, progress, says, "Skip connections change no law of a block", formula)
    laws = {key: run(STUDIES[key], Backprop(), settings, seed, 0, 1).names for key in ("skip", "no-skip")}
    within = {key: [name for name in names if name.startswith("up")] for key, names in laws.items()}
    same = Claim.true(
        "skip.same",
        "Section 3",
        "The laws within the two blocks are, name by name, those of the same blocks without their skip connections "
        "(a chain has others besides, from block to block).",
        within["skip"] == within["no-skip"] and len(within["skip"]) == STUDIES["skip"].count,
    )
    return replace(found, claims=[*found.claims, same])


PAPER = Paper(
    id="marcotte2025",
    title="Transformative or Conservative? Conservation laws for ResNets and Transformers",
    citation=(
        "Sibylle Marcotte, Rémi Gribonval and Gabriel Peyré, Transformative or Conservative? Conservation laws for "
        "ResNets and Transformers, ICML 2025, arXiv:2506.06194"
    ),
    settings=Settings,
    quick={"seeds": 2, "steps": 40},
    stages={"conv": convolution, "attention": attention, "skip": skip},
)
"""The paper as ``lawful reproduce marcotte2025`` runs it."""
