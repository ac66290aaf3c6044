"""Claims, and what else a section lists, as tables in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from lawful.experiments import records
from lawful.experiments.claims import Claim, Verdict
from lawful.reports.claims import CLAIMS, SIGNS, Wording, expectation, number

_COLORS: Mapping[Verdict, str] = {"holds": "green", "fails": "bold red", "corrects-the-paper": "yellow"}

SOURCE_WIDTH, STATEMENT_WIDTH = 110, 150
"""Terminals at least this wide also show where each claim is stated, and its sentence."""


def claims_table(claims: Sequence[Claim], width: int, wording: Wording = CLAIMS) -> Table:
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
    table.add_column(wording.noun, no_wrap=True)
    for name in shown:
        table.add_column(name, overflow="fold")
    table.add_column("verdict", no_wrap=True)
    for claim in claims:
        verdict = Text(f"{SIGNS[claim.verdict]} {wording.words[claim.verdict]}", style=_COLORS[claim.verdict])
        table.add_row(Text(claim.id), *(Text(cell(claim)) for cell in shown.values()), verdict)
    return table


def words_table(rows: records.Table, width: int) -> Table:
    """A table of a section as a rich table; in a narrow terminal words wrap."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, width=None if width >= STATEMENT_WIDTH else width)
    for column in rows.columns:
        table.add_column(column, overflow="fold")
    for row in rows.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
