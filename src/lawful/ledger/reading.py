"""What a ledger says at one moment, as numbers with names: the one place that every logger reads from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lawful.ledger.ledger import Ledger


@dataclass(frozen=True)
class Reading:
    """A ledger after some steps.

    Attributes:
        step: steps of the optimiser so far.
        parts: cause -> Σ_j |its part of q_j − q_j(0)| over all laws, in the units of q.
        violation: the rule's own part, relative, largest: 0 when the backward pass is what it claims to be.
        residual: what the causes leave unexplained, relative, largest.
        moved: Σ_j |q_j − q_j(0)| / Σ_j |q_j(0)| of the law that has moved furthest (:func:`movements`).
        worst: that law's kind and site.
    """

    step: int
    parts: Mapping[str, float]
    violation: float
    residual: float
    moved: float
    worst: str

    def scalars(self, prefix: str = "ledger") -> dict[str, float]:
        """The numbers by name, for a logger; the names stay the same from run to run.

        Which law has moved furthest is no number: ``worst`` says it.

        >>> list(Reading(3, {"finite step": 0.5}, 0.0, 0.0, 0.1, "neuron fc1").scalars())
        ['ledger/violation', 'ledger/residual', 'ledger/parts/finite step', 'ledger/moved']
        """
        return {
            f"{prefix}/violation": self.violation,
            f"{prefix}/residual": self.residual,
            **{f"{prefix}/parts/{cause}": part for cause, part in self.parts.items()},
            f"{prefix}/moved": self.moved,
        }


def read(ledger: Ledger) -> Reading:
    """The ledger now; costs a few evaluations of every law.

    Raises:
        NoLawError: it follows none.
    """
    residual = float(ledger.residual.max())  # settles the books, so the parts come after it
    moved, worst = _furthest(ledger)
    return Reading(
        step=ledger.steps,
        parts={cause: float(part.abs().sum()) for cause, part in ledger.parts.items()},
        violation=float(ledger.violation.max()),
        residual=residual,
        moved=moved,
        worst=worst,
    )


def _furthest(ledger: Ledger) -> tuple[float, str]:
    shares = movements(ledger, ledger.values()[None])
    return max(
        (float(moved[-1]), f"{law.kind} {law.formula if law.kind in ('shift', 'bias') else law.name}")
        for law, (_, moved) in zip(ledger.laws, shares, strict=True)
    )


def movements(ledger: Ledger, q: torch.Tensor) -> list[tuple[float, torch.Tensor]]:
    """How far every law is from its start: (its size, Σ_j |q_j − q_j(0)| / size).

    The size is Σ_j |q_j(0)|. A law that starts at zero, to rounding, has none, and takes the furthest that it came: it
    has moved by 1 there, and by 0 everywhere if nothing but rounding moved it.

    Args:
        ledger: in use or finished.
        q: its values at R moments, (R, numbers).
    """
    change, start, rounding = (q - ledger.start).abs(), ledger.start.abs(), ledger.rounding()
    found, at = [], 0
    for law in ledger.laws:
        own = slice(at, at := at + len(law.names))
        size, moved, least = float(start[own].sum()), change[:, own].sum(1), float(rounding[own].sum())
        if size <= least:
            size = float(moved.max())
            if size <= least:
                size, moved = 1.0, torch.zeros_like(moved)
        found.append((size, moved / size))
    return found
