"""Rules compared on equal terms: every rule with the same learning rates, seeds and epochs on every task; resumable."""

from __future__ import annotations

import functools
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from lawful.data.registry import load_data
from lawful.errors import DivergenceError
from lawful.training.loop import open_run
from lawful.training.settings import Settings

RULES: Final[Mapping[str, str]] = {"BP": "bp", "FA": "fa", "DFA": "dfa", "uSF": "usf", "KP": "kp", "WM": "wm"}
"""Column of the table -> rule."""


@dataclass(frozen=True)
class Task:
    """A model on a data set, with its budget.

    Args:
        name: row of the table.
        settings: everything but rule, learning rate and seed.
        rules: rules that this model needs spelled otherwise, by column.
    """

    name: str
    settings: Settings
    rules: Mapping[str, str] | None = None

    def rule(self, column: str) -> str:
        """The rule of a column, as this model needs it."""
        return (self.rules or {}).get(column, RULES[column])


_TEN_THOUSAND: Final = 10_000

TASKS: Final[tuple[Task, ...]] = (
    Task("Fashion-MNIST, MLP", Settings(model="mlp", data="fashion", examples=_TEN_THOUSAND, epochs=10)),
    Task("Fashion-MNIST, CNN", Settings(model="cnn", data="fashion", examples=_TEN_THOUSAND, epochs=3)),
    Task("MNIST-1D, MLP", Settings(model="mlp", data="mnist1d", epochs=20)),
    Task("MNIST-1D, CNN", Settings(model="cnn", data="mnist1d", epochs=20)),
    Task("MNIST-1D, GRU", Settings(model="gru", data="mnist1d", epochs=8), {"DFA": "dfa:taps=['gru']"}),
    Task("text, transformer", Settings(model="transformer", data="text", examples=3000, epochs=3)),
)
LEARNING_RATES: Final = (3e-4, 1e-3, 3e-3)
SEEDS: Final = (0, 1, 2)


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    task: str
    column: str
    settings: Settings

    @property
    def folder(self) -> str:
        """Where the run lies in the grid's folder."""
        s = self.settings  # the budget too, so that a changed task is run anew
        words = (self.task, self.column, f"lr{s.lr:g}", f"seed{s.seed}", f"{s.epochs}epochs", s.digest)
        return "-".join("".join(c if c.isalnum() or c in "._" else "_" for c in word) for word in words)


@dataclass(frozen=True)
class Result:
    """What a run came to; loss, accuracy and angle are nan when it diverged.

    Attributes:
        loss: training loss of the last epoch.
        accuracy: on the test set.
        angle: between the rule's gradient and backpropagation's, degrees.
        seconds: of processor time, in the process that finished it.
    """

    task: str
    column: str
    lr: float
    seed: int
    loss: float
    accuracy: float
    angle: float
    seconds: float


def cells(
    tasks: Sequence[Task] = TASKS,
    columns: Sequence[str] = tuple(RULES),
    lrs: Sequence[float] = LEARNING_RATES,
    seeds: Sequence[int] = SEEDS,
) -> Iterator[Cell]:
    """Every run of the grid; all seeds and rates of a table entry one after the other."""
    for task in tasks:
        for column in columns:
            for lr in lrs:
                for seed in seeds:
                    # D, B and the weights come from the same seed: a replicate is new in every respect.
                    rule = task.rule(column)
                    seeded = rule if column == "BP" else rule + ("," if ":" in rule else ":") + f"seed={seed}"
                    if column == "uSF":
                        seeded = rule  # has nothing to draw
                    yield Cell(task.name, column, replace(task.settings, rule=seeded, lr=lr, seed=seed))


_data = functools.cache(load_data)
"""A worker process loads each data set once."""


def run_cell(cell: Cell, root: Path) -> Result:
    """One run, continued from its newest checkpoint; its result is kept, so that it is never run twice."""
    folder = root / cell.folder
    kept = folder / "result.json"
    if kept.exists():
        return Result(**json.loads(kept.read_text(encoding="utf-8")))
    torch.set_num_threads(1)
    began = time.process_time()
    training = open_run(cell.settings, folder, resume=True, data=_data(cell.settings.data))
    try:
        last = training.run(folder)[-1]
        loss, accuracy, angle = last.loss, last.accuracy, last.angle
    except DivergenceError:
        loss = accuracy = angle = float("nan")
    seconds = time.process_time() - began
    result = Result(cell.task, cell.column, cell.settings.lr, cell.settings.seed, loss, accuracy, angle, seconds)
    partial = kept.with_suffix(".partial")
    partial.write_text(json.dumps(vars(result)), encoding="utf-8")
    os.replace(partial, kept)
    return result


def run_grid(
    grid: Sequence[Cell], root: Path, *, jobs: int = 2, watch: Callable[[int, Result], Any] = lambda *_: None
) -> list[Result]:
    """All runs, ``jobs`` at a time, each on one thread; interrupted at any moment, the same call goes on.

    Args:
        grid: the runs.
        root: where they are kept.
        jobs: worker processes.
        watch: told of every finished run, with the number finished so far.
    """
    results: dict[str, Result] = {}
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run_cell, cell, root): cell for cell in grid}
        for future in as_completed(futures):
            results[futures[future].folder] = future.result()
            watch(len(results), future.result())
    return [results[cell.folder] for cell in grid]


def table(results: Sequence[Result]) -> str:
    """Mean ± deviation of the test accuracy over seeds, in per cent, at each rule's best learning rate; Markdown.

    Best is the lowest mean training loss at the end, so that the test set chooses nothing; a rate at which a seed
    diverged is not chosen. In brackets the angle to backpropagation's gradient at the end.
    """
    columns = list(dict.fromkeys(result.column for result in results))
    lines = ["| task | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for task in dict.fromkeys(result.task for result in results):
        entries = [_entry([r for r in results if (r.task, r.column) == (task, column)]) for column in columns]
        lines.append(f"| {task} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def best(results: Sequence[Result]) -> list[Result]:
    """The runs of one entry at its best learning rate; none when every rate diverged."""
    by_lr: dict[float, list[Result]] = {}
    for result in results:
        by_lr.setdefault(result.lr, []).append(result)
    losses = {lr: statistics.fmean(r.loss for r in runs) for lr, runs in by_lr.items()}
    finite = {lr: loss for lr, loss in losses.items() if math.isfinite(loss)}
    return by_lr[min(finite, key=lambda lr: finite[lr])] if finite else []


def _entry(results: Sequence[Result]) -> str:
    runs = best(results)
    if not runs:
        return "diverged"
    accuracies = [100 * result.accuracy for result in runs]
    spread = f" ± {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
    angle = statistics.fmean(result.angle for result in runs)
    return f"{statistics.fmean(accuracies):.1f}{spread} ({angle:.0f}°, lr {runs[0].lr:g})"
