"""A training run in the terminal: a bar for the epoch, and a line for every finished one."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lawful.training.observer import Epoch


class TerminalProgress:
    """Loss, accuracy and alignment angle as they come; where no terminal watches, a line an epoch only."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=30),
            TextColumn("loss {task.fields[loss]}{task.fields[last]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._epochs = 0

    def started(self, done: int, epochs: int) -> None:
        """Shows the bar."""
        self._epochs = epochs
        if done:
            self._print(f"[dim]resumed after epoch {done} of {epochs}[/dim]")
        self._task = self._progress.add_task(
            "", total=epochs, completed=done, epoch=f"{done}/{epochs}", loss="–", last=""
        )
        self._progress.start()

    def stepped(self, epoch: int, fraction: float, loss: float) -> None:
        """Moves it."""
        if self._task is not None:
            shown = f"{epoch}/{self._epochs}"
            self._progress.update(self._task, completed=epoch - 1 + fraction, epoch=shown, loss=f"{loss:.4f}")

    def finished(self, record: Epoch) -> None:
        """Prints a line that stays; the bar goes on with what was measured last."""
        if self._task is not None:
            self._progress.update(self._task, last=f"  accuracy {record.accuracy:.2%}  angle {record.angle:.1f}°")
        self._print(
            f"epoch {record.epoch:>3}/{self._epochs}  loss {record.loss:.4f}  accuracy {record.accuracy:7.2%}  "
            f"angle to backprop {record.angle:5.1f}°  [dim]{record.seconds:.1f} s[/dim]"
        )

    def closed(self) -> None:
        """Removes the bar."""
        self._progress.stop()

    def _print(self, line: str) -> None:
        self._progress.console.print(line, highlight=False)
