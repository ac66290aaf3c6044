"""TensorBoard logs of a training run; needs the package tensorboard (``pip install 'lawful[tensorboard]'``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lawful.errors import SettingError
from lawful.ledger.ledger import Ledger
from lawful.ledger.reading import read
from lawful.training.observer import Epoch


class TensorBoardLog:
    """Writes ``train/loss``, ``test/accuracy`` and ``alignment/angle`` at every epoch.

    Args:
        folder: the log directory.

    Raises:
        SettingError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise SettingError("TensorBoard logs need tensorboard: pip install 'lawful[tensorboard]'") from error
        self._folder = folder
        self._new_writer = SummaryWriter
        self._writer: SummaryWriter | None = None

    def started(self, done: int, epochs: int) -> None:
        """Opens the log; what a killed process wrote after its last checkpoint is struck out."""
        self._writer = self._new_writer(str(self._folder), purge_step=done + 1)

    def stepped(self, epoch: int, fraction: float, loss: float) -> None:
        """Nothing: steps are for the terminal."""

    def finished(self, record: Epoch) -> None:
        """Writes the epoch."""
        if self._writer is not None:
            self._writer.add_scalar("train/loss", record.loss, record.epoch)
            self._writer.add_scalar("test/accuracy", record.accuracy, record.epoch)
            self._writer.add_scalar("alignment/angle", record.angle, record.epoch)
            self._writer.flush()

    def closed(self) -> None:
        """Closes the log."""
        if self._writer is not None:
            self._writer.close()


def log_ledger(writer: Any, ledger: Ledger, step: int | None = None) -> None:
    """Write what moved the laws so far: one scalar a name of :meth:`lawful.ledger.reading.Reading.scalars`.

    Call it after ``optimizer.step()``, at every step or now and then; it evaluates every law a few times.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or anything with its ``add_scalar``.
        ledger: in use or finished.
        step: where on the axis; the ledger's own count of steps by default.
    """
    for name, value in read(ledger).scalars().items():
        writer.add_scalar(name, value, ledger.steps if step is None else step)
