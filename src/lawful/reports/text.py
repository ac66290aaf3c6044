"""Prose with formulas as HTML: paragraphs, ``$…$`` and `` `code` ``, and LaTeX as MathML."""

from __future__ import annotations

import re
from html import escape

from latex2mathml.converter import convert

_INLINE = re.compile(r"\$(?P<math>[^$]+)\$|`(?P<code>[^`]+)`|\*\*(?P<strong>[^*]+)\*\*")


def paragraphs(text: str) -> str:
    """``text`` as HTML paragraphs; blank lines part them."""
    blocks = [block.strip() for block in re.split(r"\n\s*\n", text) if block.strip()]
    return "\n".join(f"<p>{inline(block)}</p>" for block in blocks)


def inline(text: str) -> str:
    """One run of text as HTML; everything but the marks of this module is escaped."""
    parts: list[str] = []
    end = 0
    for match in _INLINE.finditer(text):
        parts.append(escape(text[end : match.start()]))
        parts.append(_SPANS[match.lastgroup or ""](match[match.lastgroup or ""]))
        end = match.end()
    return "".join([*parts, escape(text[end:])])


def equation(latex: str) -> str:
    """A displayed formula."""
    return f'<div class="equation">{convert(latex, display="block")}</div>'


_SPANS = {
    "math": convert,
    "code": lambda code: f"<code>{escape(code)}</code>",
    "strong": lambda strong: f"<strong>{inline(strong)}</strong>",
}
