"""The page of an audit: the answer first, then the laws one by one, then the pictures, then the checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from lawful.experiments.records import Section
from lawful.reports.claims import CHECKS
from lawful.reports.page import claims_table, document, figure_of, footer, header, rerun, words_table
from lawful.reports.text import equation, inline, paragraphs

_CHANGE = "Change a setting by its option (<code>lawful audit --help</code>);"


def audit_page(
    *,
    title: str,
    citation: str,
    sections: Sequence[Section],
    drawings: Mapping[str, str],
    settings: Iterable[tuple[str, str, str]],
    command: str,
    environment: Mapping[str, Any],
) -> str:
    """The page; the arguments are those of `lawful.reports.page.page`."""
    (audit,) = sections
    main = [
        header("Conservation audit", title, f"{audit.title}. {citation}", audit.claims, CHECKS),
        f'<section id="answer">\n{paragraphs(audit.measured)}\n</section>',
        *(f'<section id="laws">\n<h2>Law by law</h2>\n{words_table(table)}\n</section>' for table in audit.tables),
        *(_picture(figure, drawings[figure.id]) for figure in audit.figures),
        _theory(audit),
        f'<section id="checks">\n<h2>Are the books right?</h2>\n{claims_table(audit.claims, CHECKS)}\n</section>',
        rerun(settings, command, _CHANGE),
        footer(environment),
    ]
    return document(f"{audit.title} · audited", _contents(audit), main)


def _contents(audit: Section) -> list[str]:
    mark = "" if all(claim.ok for claim in audit.claims) else ' class="bad"'
    return [
        '<a href="#answer">The answer</a>',
        '<a href="#laws">Law by law</a>',
        *(f'<a href="#{escape(figure.id)}">{inline(figure.title)}</a>' for figure in audit.figures),
        '<a href="#theory">What theory expects</a>',
        f'<a href="#checks"{mark}>Are the books right?</a>',
        '<a href="#rerun">Settings, and how to run it again</a>',
    ]


def _picture(figure: Any, svg: str) -> str:
    return f'<section id="{escape(figure.id)}">\n<h2>{inline(figure.title)}</h2>\n{figure_of(figure, svg)}\n</section>'


def _theory(audit: Section) -> str:
    formulas = "\n".join(equation(latex) for latex in audit.equations)
    return (
        f'<section id="theory">\n<h2>What theory expects</h2>\n{paragraphs(audit.paper_says)}\n{formulas}\n</section>'
    )
