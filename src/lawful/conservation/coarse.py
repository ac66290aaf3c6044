"""The error balance summed over channels: what a layer norm or an RMS norm cannot see is the scale of a whole stream.

Such a norm receives Σ_j E_j → 0 as its eps → 0, though no single E_j is known. Summing every block of the balance over
its channels leaves a small system with one variable per block, where that is one more known number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from lawful.conservation.balance import Balance, Ids, Known
from lawful.conservation.elimination import Row, relations

NORMS = frozenset({"layer norm", "RMS norm"})
_REASONS = frozenset(f"{norm} mixes its channels" for norm in NORMS)
EPS, BATCH = "eps", "eps of a batch norm"


def stream_relations(balance: Balance, lines: list[tuple[str, Ids]]) -> Iterator[list[tuple[Known, Fraction]]]:
    """Relations between whole blocks of known quantities that hold because a norm reads a whole block of channels.

    Args:
        balance: of a finished run.
        lines: (norm, channels it reads).
    """
    system = _Coarse(balance)
    read_by_norm = {int(ids.min()) for what, ids in lines if what in NORMS and system.whole(ids)}
    rows = [*system.equations(), *system.balances(read_by_norm)]
    for solution in relations(rows, known=lambda column: column in (EPS, BATCH) or system.known(column)):
        if EPS in solution:
            yield [(system.block(column), c) for column, c in solution.items() if column not in (EPS, BATCH)]


class _Coarse:
    def __init__(self, balance: Balance) -> None:
        self._balance = balance
        self._blocks = balance.blocks
        self._starts = np.array([start for start, *_ in self._blocks])
        self._unknowns = 0

    def known(self, column: object) -> bool:
        return isinstance(column, int) and (known := self._blocks[column][2]) is not None and known.term is not None

    def block(self, column: object) -> Known:
        known = self._blocks[column][2] if isinstance(column, int) else None
        assert known is not None
        return known

    def whole(self, ids: Ids) -> bool:
        """Whether the channels are exactly those of one block."""
        return self._columns(ids) is not None and len(self._columns(ids) or []) == 1

    def _columns(self, ids: Ids) -> list[int] | None:
        """The blocks that the variables fill, each exactly once; None when some block is filled in part."""
        found, counts = np.unique(np.searchsorted(self._starts, ids, side="right") - 1, return_counts=True)
        full = all(self._blocks[b][1] == n for b, n in zip(found.tolist(), counts.tolist(), strict=True))
        return found.tolist() if full and len(np.unique(ids)) == len(ids) else None

    def _fresh(self) -> str:
        self._unknowns += 1
        return f"unknown {self._unknowns}"

    def _add(self, row: Row, ids: Ids, weight: Fraction) -> None:
        for column in self._columns(ids) or ():
            term = self._blocks[column][2]
            name = BATCH if term is not None and term.term is None else column
            row[name] = row.get(name, Fraction(0)) + weight

    def equations(self) -> Iterator[Row]:
        """Every explicit equation block, summed."""
        for entries in self._balance.equation_calls:
            row: Row = {}
            for variable, coefficient in entries:
                if len(variable) and self._columns(variable) is None:
                    row[self._fresh()] = Fraction(1)
                else:
                    self._add(row, variable, Fraction(coefficient))
            yield row

    def balances(self, read_by_norm: set[int]) -> Iterator[Row]:
        """Σ_j E_j of every block of channels, as what its readers add."""
        amounts: dict[int, list[tuple[Ids, float]]] = defaultdict(list)
        partly: set[int] = set()
        for source, into, coefficient, _ in self._balance.reads:
            blocks = np.searchsorted(self._starts, source, side="right") - 1
            for b in np.unique(blocks).tolist():
                mine = blocks == b
                if self._columns(into[mine]) is None or len(set(coefficient[mine].tolist())) > 1:
                    partly.add(b)
                else:
                    amounts[b].append((into[mine], float(coefficient[mine][0])))
        for b, (start, count, _, activation) in enumerate(self._blocks):
            reasons = set().union(*(self._balance.reasons.get(i, set()) for i in range(start, start + count)))
            if not activation or b in partly or reasons - _REASONS or (reasons and start not in read_by_norm):
                continue
            row: Row = {b: Fraction(1)}
            if reasons:
                row[EPS] = Fraction(-1)
            for into, coefficient in amounts[b]:
                self._add(row, into, -Fraction(coefficient))
            yield row
