"""Claims as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from lawful.experiments.claims import Claim, Verdict
from lawful.reports.claims import SIGNS, WORDS, expectation, number

_COLORS: Mapping[Verdict, str] = {"holds": "green", "fails": "bold red", "corrects-the-paper": "yellow"}

STATEMENT_WIDTH = 150
"""Terminals at least this wide also show each claim's sentence."""


def claims_table(claims: Sequence[Claim], width: int) -> Table:
    """``claims`` as a rich table for a terminal of ``width`` columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("claim", overflow="fold")
    if width >= STATEMENT_WIDTH:
        table.add_column("statement", overflow="fold")
    for name in ("source", "expected", "measured"):
        table.add_column(name, overflow="fold")
    table.add_column("verdict", no_wrap=True)
    for claim in claims:
        color = _COLORS[claim.verdict]
        sentence = [Text(claim.statement)] if width >= STATEMENT_WIDTH else []
        verdict = Text(f"{SIGNS[claim.verdict]} {WORDS[claim.verdict]}", style=color)
        cells = [Text(claim.source), Text(expectation(claim)), Text(number(claim.measured))]
        table.add_row(Text(claim.id), *sentence, *cells, verdict)
    return table
