"""A paper small enough to measure in milliseconds, with a knob for everything that can happen to a run."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lawful.errors import DivergenceError, SettingError
from lawful.experiments.claims import Claim
from lawful.experiments.paper import Paper, Progress
from lawful.experiments.records import Figure, Line, Panel, Section


@dataclass(frozen=True)
class TinySettings:
    n: int = 8
    lr: float = 0.1
    steps: int = 30
    widths: tuple[int, ...] = (3, 2)
    activation: Literal["linear", "relu"] = "linear"
    bias: bool = False
    scale: float | None = None
    pause: float = 0.0
    fault: Literal["none", "claim", "crash", "kill", "early"] = "none"

    def validate(self) -> None:
        if self.n <= 0:
            raise SettingError(f"setting n: expected n >= 1; got {self.n}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A worker unpickles its settings before its first line; the fault "early" is a Ctrl-C just then."""
        self.__dict__.update(state)
        if self.fault == "early":
            os.kill(os.getpid(), signal.SIGINT)


def decay(settings: TinySettings, seed: int, progress: Progress) -> Section:
    """x' = -x by Euler's method against its closed form (1 - lr)^k."""
    x = np.ones(settings.steps + 1)
    for k in range(settings.steps):
        x[k + 1] = (1 - settings.lr) * x[k]
        progress.update((k + 1) / settings.steps, f"step {k + 1}")
        if abs(x[k + 1]) > 1e6:
            raise DivergenceError(f"lr = {settings.lr} diverges at step {k + 1}; choose lr < 2")
    steps = np.arange(settings.steps + 1)
    closed = (1 - settings.lr) ** steps
    line = Line("Euler", steps, x, low=0.9 * x, high=1.1 * x)
    panel = Panel("Decay", "step", "$x$ (units of $x_0$)", [line, Line("closed form", steps, closed, style="--")])
    return Section(
        "decay",
        "Decay of $x$",
        "It decays & <converges>.",
        "It does: $x_k = (1 - \\eta)^k$ with `lr`.\n\nA second paragraph.",
        equations=[r"x_k = (1-\eta)^k x_0, \qquad \lVert x \rVert^2 \to 0"],
        claims=[
            Claim.close("decay.closed", "Theorem 1", "Euler is its closed form.", x[-1], closed[-1], rel=1e-9),
            Claim.at_most("decay.small", "Theorem 1", "x shrinks.", abs(x[-1]), 1.0),
        ],
        figures=[Figure("decay", "Decay", "The curves lie on each other.", [panel])],
        arrays={"x": x},
    )


def noise(settings: TinySettings, seed: int, progress: Progress) -> Section:
    """Draws whose mean depends on the seed; the stage that can be made to pause, fail, crash and die."""
    for k in range(20):
        progress.update(k / 20)
        time.sleep(settings.pause / 20)
    if settings.fault == "crash":
        raise ZeroDivisionError("a programming error")
    if settings.fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    draws = np.random.default_rng(seed).standard_normal(settings.n)
    bound = -1.0 if settings.fault == "claim" else 10.0
    return Section(
        "noise",
        "Noise",
        "The mean is small.",
        "It is.",
        claims=[
            Claim.at_most("noise.mean", "Section 2", "The mean is small.", abs(float(draws.mean())), bound),
            Claim.true("noise.corrected", "Section 2", "The draws differ.", bool(np.ptp(draws) >= 0), corrects=True),
        ],
        arrays={"draws": draws},
    )


PAPER = Paper(
    "tiny",
    "A tiny paper",
    "Nobody, nowhere, 2023",
    TinySettings,
    stages={"decay": decay, "noise": noise},
    quick={"steps": 5},
)
