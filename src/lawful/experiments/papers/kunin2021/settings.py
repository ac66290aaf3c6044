"""The knobs of the reproduction: one small classifier and its optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lawful.errors import SettingError
from lawful.experiments.ranges import check_ranges

_LIMITS: Final = {"n": (8, 100_000), "steps": (16, 100_000), "seeds": (1, 100), "batch": (2, 100_000)}


@dataclass(frozen=True)
class Settings:
    """One small classifier: Linear, batch norm, ReLU, Linear, ReLU, Linear, cross-entropy.

    Args:
        n: Examples.
        batch: Examples in a step.
        lr: Learning rate.
        steps: Steps; time is t = lr · step.
        decay: Weight decay λ.
        momentum: β of heavy-ball SGD.
        seeds: Independent draws of data and weights.
    """

    n: int = 256
    batch: int = 64
    lr: float = 0.05
    steps: int = 1600
    decay: float = 0.02
    momentum: float = 0.9
    seeds: int = 3

    def validate(self) -> None:
        """Check ranges.

        Raises:
            SettingError: one line that names the key, the allowed values and what came.
        """
        check_ranges(self, _LIMITS)
        if self.momentum >= 1:
            raise SettingError(f"momentum must lie between 0 and 1; got {self.momentum!r}")


QUICK: Final = {"seeds": 2, "steps": 600}
"""What ``--quick`` replaces."""
