"""Writes what a reader looks at: the figures and ``report.html`` of a finished run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from lawful.errors import SettingError
from lawful.experiments.records import Section
from lawful.experiments.run import ENVIRONMENT_FILE, Run
from lawful.experiments.spec import setting_types, show_value, type_name
from lawful.experiments.store import write_atomic
from lawful.reports.figures import render
from lawful.reports.page import page

REPORT_FILE = "report.html"
FIGURES_DIR = "figures"


def write_report(run: Run, *, command: str | None = None, compose: Callable[..., str] = page) -> Path:
    """Draws every figure as PNG and SVG into ``figures/`` and writes ``report.html``; returns its path.

    Args:
        run: A finished run.
        command: The shell line that gives it again, where that is not ``lawful reproduce``.
        compose: What makes the page of it; takes what `lawful.reports.page.page` takes.
    """
    drawings = _draw_all(run.sections, run.root / FIGURES_DIR)
    kinds = setting_types(run.paper.settings)
    environment = json.loads((run.root / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
    html = compose(
        title=run.paper.title,
        citation=run.paper.citation,
        sections=run.sections,
        drawings=drawings,
        settings=[(key, type_name(kind), show_value(getattr(run.spec.settings, key))) for key, kind in kinds.items()],
        command=command or rerun_command(run),
        environment=environment,
    )
    path = run.root / REPORT_FILE
    write_atomic(path, html)
    return path


def rerun_command(run: Run) -> str:
    """The shell line that gives this run again: every setting that differs from its default is named."""
    default = run.paper.settings()
    words = ["lawful", "reproduce", run.spec.paper]
    if run.spec.seed:
        words += ["--seed", str(run.spec.seed)]
    for key in setting_types(run.paper.settings):
        value = getattr(run.spec.settings, key)
        if value != getattr(default, key):
            words += ["--set", f"{key}={show_value(value)}"]
    return shlex.join(words)


def _draw_all(sections: Sequence[Section], folder: Path) -> dict[str, str]:
    drawings: dict[str, str] = {}
    for figure in (figure for section in sections for figure in section.figures):
        if figure.id in drawings:
            raise SettingError(f"figure id {figure.id!r} is used twice; ids name one figure each")
        files = render(figure)
        for format, content in files.items():
            write_atomic(folder / f"{figure.id}.{format}", content)
        drawings[figure.id] = files["svg"].decode()
    return drawings
