"""The results runner, on a tiny grid."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from lawful.training.grid import RULES, TASKS, Cell, Result, Task, cells, run_cell, run_grid, table
from lawful.training.settings import Settings

TINY = Task("digits, MLP", Settings(data="digits", examples=128, epochs=2))


def test_the_grid_is_every_rule_on_every_task():
    grid = list(cells())
    assert len(grid) == len(TASKS) * len(RULES) * 9
    assert len({cell.folder for cell in grid}) == len(grid)
    assert max(cell.settings.examples or 0 for cell in grid) == 10_000
    gru = [cell.settings.rule for cell in grid if cell.column == "DFA" and cell.settings.model == "gru"]
    assert gru[0] == "dfa:taps=['gru'],seed=0"


def test_a_changed_budget_is_another_run():
    (cell,) = cells([TINY], ["BP"], [1e-3], [0])
    for change in ({"epochs": 3}, {"examples": 64}, {"batch": 32}):
        (other,) = cells([Task(TINY.name, replace(TINY.settings, **change))], ["BP"], [1e-3], [0])
        assert other.folder != cell.folder


def test_it_resumes_and_never_runs_twice(tmp_path):
    grid = list(cells([TINY], ["BP", "DFA"], [1e-3], [0]))
    seen = []
    results = run_grid(grid, tmp_path, jobs=1, watch=lambda done, result: seen.append((done, result.column)))
    assert sorted(seen) == [(1, "BP"), (2, "DFA")] and [r.column for r in results] == ["BP", "DFA"]
    assert results[0].angle < 0.1 < results[1].angle
    kept = tmp_path / grid[0].folder / "result.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "accuracy": 0.123}))
    assert run_cell(grid[0], tmp_path).accuracy == 0.123, "read, not run"
    kept.unlink()
    assert run_cell(grid[0], tmp_path).accuracy == results[0].accuracy, "from its last checkpoint"


@pytest.mark.parametrize("column", RULES)
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_rule_fits_every_model(task, column, tmp_path):
    from lawful.data.registry import load_data
    from lawful.errors import SettingError
    from lawful.training.loop import Training

    try:
        data = _DATA.setdefault(task.settings.data, None) or load_data(task.settings.data)
    except SettingError as absent:
        if "install" not in str(absent):  # data of an extra, or of a Debian package; anything else is a bug
            raise
        pytest.skip(str(absent))
    _DATA[task.settings.data] = data
    settings = replace(next(cells([task], [column], [1e-3], [0])).settings, examples=16, epochs=1)
    small = replace(data, x_test=data.x_test[:8], y_test=data.y_test[:8])
    (record,) = Training(settings, small).run()
    assert math.isfinite(record.loss) and (record.angle < 0.1) == (column == "BP")


_DATA = {}


def test_a_run_that_diverges_is_a_result(tmp_path):
    cell = Cell("t", "BP", Settings(examples=64, optimizer="sgd", lr=1e30, rule="bp", epochs=2))
    assert math.isnan(run_cell(cell, tmp_path).accuracy)


def test_the_table_takes_each_rules_best_rate():
    losses = {0.1: (0.5, 0.6), 0.2: (0.1, float("nan")), 0.3: (0.9, 0.9)}
    runs = [
        Result("t", "FA", lr, seed, losses[lr][seed], accuracy, 30.0, 1.0)
        for lr, pair in {0.1: (0.5, 0.7), 0.2: (0.9, float("nan")), 0.3: (0.8, 0.9)}.items()
        for seed, accuracy in enumerate(pair)
    ]
    runs.append(Result("t", "BP", 0.1, 0, float("nan"), float("nan"), float("nan"), 1.0))
    assert table(runs).splitlines() == [
        "| task | FA | BP |",
        "|---|---|---|",
        "| t | 60.0 ± 14.1 (30°, lr 0.1) | diverged |",
    ]
