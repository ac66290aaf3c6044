"""A progress bar a stage; where no terminal watches, a line a finished stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn


class ProgressBars:
    """The `lawful.experiments.run.Watcher` of the command line."""

    def __init__(self, progress: Progress, stages: Sequence[str]) -> None:
        self._progress = progress
        self._total = progress.add_task("all stages", total=len(stages), text="")
        self._done: dict[str, float] = dict.fromkeys(stages, 0.0)
        self._bars = {}

    def started(self, stage: str) -> None:
        """Shows the stage's bar."""
        self._bars[stage] = self._progress.add_task(escape(stage), total=1.0, text="")

    def progressed(self, stage: str, fraction: float, text: str) -> None:
        """Moves the stage's bar."""
        self._progress.update(self._bars[stage], completed=fraction, text=escape(text))
        self._advance(stage, fraction)

    def finished(self, stage: str, seconds: float, *, resumed: bool) -> None:
        """Replaces the stage's bar by one line that stays."""
        if stage in self._bars:
            self._progress.remove_task(self._bars.pop(stage))
        how = "measured earlier" if resumed else f"{seconds:.1f} s"
        self._progress.console.print(f"[green]✓[/green] {escape(stage)} [dim]{how}[/dim]", highlight=False)
        self._advance(stage, 1.0)

    def _advance(self, stage: str, fraction: float) -> None:
        self._done[stage] = fraction
        self._progress.update(self._total, completed=sum(self._done.values()))


@contextmanager
def watching(console: Console, stages: Sequence[str]) -> Iterator[ProgressBars]:
    """Progress bars for ``stages`` while the block runs."""
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[text]}[/dim]"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        yield ProgressBars(progress, stages)
