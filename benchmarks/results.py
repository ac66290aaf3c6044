"""The results page: BP, FA, DFA, uSF, KP and WM on six tasks, three seeds and three learning rates each.

    python benchmarks/results.py --out lawful-runs/results

Interrupted at any moment, the same command goes on. Writes DIR/results.md, DIR/results.png and DIR/results.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lawful.experiments.records import Figure, Line, Panel
from lawful.reports.figures import render
from lawful.training.grid import LEARNING_RATES, RULES, SEEDS, TASKS, Cell, Result, best, cells, run_grid, table


def curves(grid: Sequence[Cell], results: Sequence[Result], root: Path) -> Figure:
    """Test accuracy over epochs of every rule at its chosen learning rate: mean, lowest and highest seed."""
    folders = {(c.task, c.column, c.settings.lr, c.settings.seed): root / c.folder for c in grid}
    panels = []
    for task in dict.fromkeys(result.task for result in results):
        lines = []
        for color, column in enumerate(RULES):
            runs = best([r for r in results if (r.task, r.column) == (task, column)])
            if runs:
                histories = [
                    json.loads((folders[task, column, r.lr, r.seed] / "history.json").read_text()) for r in runs
                ]
                accuracy = 100 * np.array([[epoch["accuracy"] for epoch in history] for history in histories])
                epochs = np.arange(1, accuracy.shape[1] + 1)
                low, high = accuracy.min(0), accuracy.max(0)
                lines.append(Line(column, epochs, accuracy.mean(0), low, high, style="o-", color=color))
        panels.append(Panel(task, "epoch", "test accuracy (%)", lines))
    caption = "Test accuracy at each rule's chosen learning rate; bands span the seeds."
    return Figure("results", "Rules compared", caption, panels)


def _entries(results: Sequence[Result]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((result.task, result.column) for result in results))


def page(grid: Sequence[Cell], results: Sequence[Result]) -> str:
    """The results as Markdown, with the budget that every rule had."""
    lines = [
        "# Rules compared",
        "",
        "![Test accuracy over epochs, one panel a task, one line a rule](figures/results.png)",
        "",
        "*Test accuracy at each rule's chosen learning rate; bands span the seeds.*",
        "",
        "Test accuracy in per cent, mean ± deviation over seeds; in brackets the angle between the rule's gradient and",
        "backpropagation's at the end of training, and the learning rate, the one with the lowest training loss.",
        "",
        table(results),
        "",
        "| task | model | training examples | epochs | optimiser |",
        "|---|---|---|---|---|",
    ]
    for task in TASKS:
        if any(cell.task == task.name for cell in grid):
            s = task.settings
            lines.append(
                f"| {task.name} | {s.model} | {s.examples or 'all'} | {s.epochs} | {s.optimizer}, batch {s.batch} |"
            )
    rates = ", ".join(f"{lr:g}" for lr in sorted({result.lr for result in results}))
    seeds = len({result.seed for result in results})
    minutes = sum(result.seconds for result in results) / 60
    chosen = [best([r for r in results if (r.task, r.column) == entry]) for entry in _entries(results)]
    chosen = [runs[0].lr for runs in chosen if runs]
    edges = [sum(lr == edge for lr in chosen) for edge in (min(r.lr for r in results), max(r.lr for r in results))]
    lines += [
        "",
        f"Every rule had {seeds} seeds and the learning rates {rates}: {len(results)} runs, {minutes:.0f} minutes of",
        f"processor time in all. Of the {len(chosen)} rates chosen {edges[0]} are the lowest, {edges[1]} the highest",
        "of the grid: the budget is the same for all, and no rule is tuned to its best. KP runs without weight decay:",
        "its feedback takes every step of the weights and keeps its distance from them. Made by",
        "`python benchmarks/results.py`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("lawful-runs/results"), metavar="DIR")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one thread")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--lrs", type=float, nargs="+", default=LEARNING_RATES)
    parser.add_argument("--task", nargs="+", choices=[task.name for task in TASKS], help="some tasks only")
    options = parser.parse_args()
    tasks = [task for task in TASKS if options.task is None or task.name in options.task]
    grid = list(cells(tasks, lrs=options.lrs, seeds=options.seeds))
    shown = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*shown) as progress:
        bar = progress.add_task("runs", total=len(grid))

        def watch(done: int, result: Result) -> None:
            progress.update(bar, completed=done, description=f"{result.task}, {result.column}")

        results = run_grid(grid, options.out, jobs=options.jobs, watch=watch)
    (options.out / "results.json").write_text(json.dumps([vars(result) for result in results], indent=1))
    (options.out / "results.md").write_text(page(grid, results), encoding="utf-8")
    (options.out / "results.png").write_bytes(render(curves(grid, results, options.out))["png"])
    print(page(grid, results))


if __name__ == "__main__":
    main()
