"""Claims as a table in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from lawful.experiments.claims import Claim, Verdict
from lawful.reports.claims import SIGNS, WORDS, expectation, number

_COLORS: Mapping[Verdict, str] = {"holds": "green", "fails": "bold red", "corrects-the-paper": "yellow"}

SOURCE_WIDTH, STATEMENT_WIDTH = 110, 150
"""Terminals at least this wide also show where each claim is stated, and its sentence."""


def claims_table(claims: Sequence[Claim], width: int) -> Table:
    """``claims`` as a rich table for a terminal of ``width`` columns."""
    columns: dict[str, tuple[int, Callable[[Claim], str]]] = {
        "statement": (STATEMENT_WIDTH, lambda claim: claim.statement),
        "source": (SOURCE_WIDTH, lambda claim: claim.source),
        "expected": (0, expectation),
        "measured": (0, lambda claim: number(claim.measured)),
    }
    shown = {name: cell for name, (least, cell) in columns.items() if width >= least}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    # An id broken in two can neither be read nor copied.
    table.add_column("claim", no_wrap=True)
    for name in shown:
        table.add_column(name, overflow="fold")
    table.add_column("verdict", no_wrap=True)
    for claim in claims:
        verdict = Text(f"{SIGNS[claim.verdict]} {WORDS[claim.verdict]}", style=_COLORS[claim.verdict])
        table.add_row(Text(claim.id), *(Text(cell(claim)) for cell in shown.values()), verdict)
    return table
