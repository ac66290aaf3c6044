"""The results page: BP, FA, DFA, uSF, KP and WM on six tasks, three seeds and three learning rates each.

    python benchmarks/results.py --out lawful-runs/results

Interrupted at any moment, the same command goes on. Writes DIR/results.md and DIR/results.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.progress import Progress

from lawful.training.grid import LEARNING_RATES, SEEDS, TASKS, cells, run_grid, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("lawful-runs/results"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--lrs", type=float, nargs="+", default=LEARNING_RATES)
    parser.add_argument("--task", nargs="+", choices=[task.name for task in TASKS], help="some tasks only")
    options = parser.parse_args()
    tasks = [task for task in TASKS if options.task is None or task.name in options.task]
    grid = list(cells(tasks, lrs=options.lrs, seeds=options.seeds))
    with Progress() as progress:
        bar = progress.add_task("runs", total=len(grid))
        results = run_grid(
            grid, options.out, jobs=options.jobs, watch=lambda done, _: progress.update(bar, completed=done)
        )
    (options.out / "results.json").write_text(json.dumps([vars(result) for result in results], indent=1))
    page = table(results)
    (options.out / "results.md").write_text(page + "\n")
    print(page)
    print(f"{sum(result.seconds for result in results) / 60:.1f} minutes of training in {len(results)} runs")


if __name__ == "__main__":
    main()
