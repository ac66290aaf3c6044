"""What the stages share: the claims of exactness, and predicted forms drawn over measured charges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from lawful.experiments.claims import Claim
from lawful.experiments.papers.kunin2021.charges import SYMMETRIES, Record
from lawful.experiments.papers.kunin2021.predictions import off, recursion
from lawful.experiments.papers.kunin2021.settings import Settings
from lawful.experiments.papers.robertson2023.shorthand import negligible
from lawful.experiments.records import Line, Panel
from lawful.flows.activations import Floats

CAPTION: Final = "The channel that moves most in the first draw: measured, and predicted from q(0) and step sizes."


def exact_claims(
    stage: str, how: str, settings: Settings, runs: Sequence[dict[str, Record]], momentum: float
) -> list[Claim]:
    """One claim a symmetry: its charge follows the recursion."""
    return [
        negligible(
            f"{stage}.{key}.exact",
            "Section 5",
            f"{how}: {symmetry.text} follows its recursion, in which no gradient direction enters "
            "(relative, largest over draws, channels and steps).",
            max(
                off(run[key], recursion(run[key], symmetry.power, lr=settings.lr, decay=settings.decay,
                                         momentum=momentum))
                for run in runs
            ),
            symmetry.tolerance,
        )
        for key, symmetry in SYMMETRIES.items()
    ]  # fmt: skip


def overlay(title: str, record: Record, predictions: Mapping[str, Floats]) -> Panel:
    """Predicted forms laid over the channel that moves most."""
    j = int(np.abs(record.q - record.q[0]).max(0).argmax())
    index = np.unique(np.linspace(0, len(record.t) - 1, 200).astype(int))
    lines = [Line("measured", record.t[index], record.q[index, j])]
    for (label, predicted), style in zip(predictions.items(), ("--", ":"), strict=False):
        lines.append(Line(label, record.t[index], predicted[index, j], style=style))
    return Panel(title, "time t = lr · step", "q", lines)
