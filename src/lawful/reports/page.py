"""A run as one self-contained HTML page: no script, no font and no picture from elsewhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from lawful.experiments.claims import VERDICTS, Claim
from lawful.experiments.records import Figure, Section, Table
from lawful.reports.claims import CLAIMS, SIGNS, Wording, expectation, number, summary
from lawful.reports.style import INK
from lawful.reports.text import equation, inline, paragraphs

ENLARGED = 1.4
"""How much larger than its size in print a figure may be shown."""

_WIDTH = re.compile(r'<svg[^>]* width="([0-9.]+)pt"')


def page(
    *,
    title: str,
    citation: str,
    sections: Sequence[Section],
    drawings: Mapping[str, str],
    settings: Iterable[tuple[str, str, str]],
    command: str,
    environment: Mapping[str, Any],
) -> str:
    """The page.

    Args:
        title: The paper's title.
        citation: Its citation.
        sections: What the stages found.
        drawings: Figure id -> SVG.
        settings: (key, type, value) rows.
        command: The shell line that gives this run again.
        environment: Versions and platform.
    """
    claims = [claim for section in sections for claim in section.claims]
    main = [
        header("Reproduced, claim by claim", title, citation, claims),
        _glance(claims),
        *(_section(section, drawings) for section in sections),
        f'<section id="claims">\n<h2>Every claim</h2>\n{claims_table(claims)}\n</section>',
        rerun(settings, command, _CHANGE),
        footer(environment),
    ]
    return document(f"{title} · reproduced", _contents(sections), main)


_CHANGE = "Change a setting with <code>--set key=value</code>, the random draws with <code>--seed</code>;"


def document(title: str, contents: Iterable[str], main: Iterable[str]) -> str:
    """A whole page: links in ``contents`` beside the parts of ``main``."""
    style = files("lawful.reports").joinpath("page.css").read_text(encoding="utf-8")
    entries = "".join(f"<li>{entry}</li>" for entry in contents)
    body = "\n".join(main)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<div class="page">\n<nav aria-label="Contents"><ol>{entries}</ol></nav>\n<main>\n{body}\n</main>\n</div>\n'
        "</body>\n</html>\n"
    )


def _contents(sections: Sequence[Section]) -> list[str]:
    entries = ['<a href="#glance">At a glance</a>']
    for section in sections:
        mark = "" if all(claim.ok for claim in section.claims) else ' class="bad"'
        entries.append(f'<a href="#{escape(section.id)}"{mark}>{inline(section.title)}</a>')
    entries.append('<a href="#claims">Every claim</a>')
    entries.append('<a href="#rerun">Settings, and how to run it again</a>')
    return entries


def header(kicker: str, title: str, meta: str, claims: Sequence[Claim], wording: Wording = CLAIMS) -> str:
    """Title, one line under it, and how many claims came to which verdict."""
    counts = Counter(claim.verdict for claim in claims)
    chips = "".join(
        f'<span class="chip {verdict}">{SIGNS[verdict]} {counts[verdict]} {escape(wording.plurals[verdict])}</span>'
        for verdict in VERDICTS
        if verdict in wording.plurals
    )
    return (
        f'<header>\n<p class="kicker">{escape(kicker)}</p>\n'
        f'<h1>{escape(title)}</h1>\n<p class="meta">{inline(meta)}</p>\n'
        f'<div class="chips" title="{escape(summary(claims, wording))}">{chips}</div>\n</header>'
    )


def _glance(claims: Sequence[Claim]) -> str:
    """The claims a reader should not miss: what failed, and what corrects the paper."""
    parts = [
        "<p>Every statement below was measured by this run. A claim <strong>holds</strong> when the measurement meets"
        " what is expected of it. It <strong>corrects the paper</strong> when the paper states otherwise and the"
        " statement made here was measured to be true.</p>"
    ]
    for verdict, heading in (("fails", "Fails"), ("corrects-the-paper", "Corrects the paper")):
        chosen = [claim for claim in claims if claim.verdict == verdict]
        if chosen:
            parts.append(f"<h3>{heading}</h3>\n{claims_table(chosen)}")
    return "\n".join(['<section id="glance">\n<h2>At a glance</h2>', *parts, "</section>"])


def claims_table(claims: Sequence[Claim], wording: Wording = CLAIMS) -> str:
    """Claims as an HTML table with coloured verdicts."""
    rows = "\n".join(
        f"<tr><td>{inline(claim.statement)}"
        f'<span class="id">{inline(claim.source)} · <code>{escape(claim.id)}</code></span></td>'
        f'<td class="number">{escape(expectation(claim))}</td><td class="number">{escape(number(claim.measured))}</td>'
        f'<td><span class="chip {claim.verdict}">{SIGNS[claim.verdict]} '
        f"{escape(wording.words[claim.verdict])}</span></td></tr>"
        for claim in claims
    )
    head = f"<tr><th>{escape(wording.noun.capitalize())}</th><th>Expected</th><th>Measured</th><th>Verdict</th></tr>"
    return f'<div class="scroll"><table class="claims">\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody></table></div>'


def words_table(table: Table) -> str:
    """A table of a section, its caption under it."""
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "\n".join("<tr>" + "".join(f"<td>{inline(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>\n'
        f'<p class="meta">{inline(table.caption)}</p>'
    )


def _section(section: Section, drawings: Mapping[str, str]) -> str:
    parts = [
        f'<section id="{escape(section.id)}">\n<h2>{inline(section.title)}</h2>',
        *(equation(latex) for latex in section.equations),
        f'<div class="beside">\n<div><h4>The paper says</h4>\n{paragraphs(section.paper_says)}</div>\n'
        f'<div class="measured"><h4>Measured here</h4>\n{paragraphs(section.measured)}</div>\n</div>',
        *(words_table(table) for table in section.tables),
        *(figure_of(figure, drawings[figure.id]) for figure in section.figures),
    ]
    if section.claims:
        parts.append(claims_table(section.claims))
    return "\n".join([*parts, "</section>"])


def figure_of(figure: Figure, svg: str) -> str:
    """A drawing with its caption."""
    return (
        f"<figure>\n{inline_svg(svg, figure.id, figure.title)}\n"
        f"<figcaption><b>{inline(figure.title)}.</b> {inline(figure.caption)}</figcaption>\n</figure>"
    )


def inline_svg(svg: str, name: str, title: str) -> str:
    """An SVG file as an element of a page: its own ids, the page's ink, no background, and a name for readers."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, count=1, flags=re.DOTALL)
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", element)
    element = re.sub(r'<g id="[^"]*patch_1">.*?</g>', "", element, count=1, flags=re.DOTALL)
    element = re.sub(re.escape(INK), "currentColor", element, flags=re.IGNORECASE)
    width = float(_WIDTH.search(element)[1])  # pyright: ignore[reportOptionalSubscript]
    attributes = f'role="img" aria-label="{escape(title)}" style="max-width: {ENLARGED * width:.0f}pt"'
    return element.replace("<svg", f"<svg {attributes}", 1).strip()


def rerun(settings: Iterable[tuple[str, str, str]], command: str, change: str) -> str:
    """The settings, the command that gives the run again, and a sentence on how to change it."""
    rows = "\n".join(
        f"<tr><td><code>{escape(key)}</code></td><td>{escape(kind)}</td><td class='number'>{escape(value)}</td></tr>"
        for key, kind, value in settings
    )
    return (
        '<section id="rerun">\n<h2>Settings, and how to run it again</h2>\n'
        f"<pre>{escape(command)}</pre>\n"
        "<p>The same command gives the same <code>claims.json</code>, byte for byte. "
        f"{change} figures are in"
        " <code>figures/</code>, trajectories in <code>stages/*/trajectories.npz</code>.</p>\n"
        '<div class="scroll"><table>\n<thead><tr><th>Setting</th><th>Type</th><th>Value</th></tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>\n</section>"
    )


def footer(environment: Mapping[str, Any]) -> str:
    """What the run was measured with."""
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    platform = "{implementation} {python} on {system} {machine}".format(**environment)
    return f"<footer>Measured with {escape(packages)}; {escape(platform)}.</footer>"
