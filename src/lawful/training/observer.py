"""What watches a training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        epoch: its number, from 1.
        loss: mean training loss over the epoch, in nats.
        accuracy: share of test targets predicted right after it.
        angle: degrees between the rule's gradient and backpropagation's after it.
        seconds: wall-clock time.
    """

    epoch: int
    loss: float
    accuracy: float
    angle: float
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON values."""
        return asdict(self)


class Observer(Protocol):
    """Told of everything that happens; changes nothing."""

    def started(self, done: int, epochs: int) -> None:
        """The run begins, with ``done`` of ``epochs`` epochs behind it."""

    def stepped(self, epoch: int, fraction: float, loss: float) -> None:
        """A step was made; ``fraction`` of the epoch is over."""

    def finished(self, record: Epoch) -> None:
        """An epoch is over, and its checkpoint is on the disk."""

    def closed(self) -> None:
        """The run is over, or has failed."""
