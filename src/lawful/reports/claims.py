"""The words and signs in which a claim is shown, in the terminal and in the report alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lawful.experiments.claims import Claim, Verdict

SIGNS: Mapping[Verdict, str] = {"holds": "✓", "fails": "✗", "corrects-the-paper": "≠"}
"""A sign beside the colour, for readers who see no colours."""


@dataclass(frozen=True)
class Wording:
    """What a report calls its claims and their verdicts; verdicts that cannot occur have no words.

    Args:
        noun: "claim".
        words: the verdict of one.
        plurals: the verdict of many, in the order of a summary.
    """

    noun: str
    words: Mapping[Verdict, str]
    plurals: Mapping[Verdict, str]


CLAIMS = Wording(
    "claim",
    {"holds": "holds", "fails": "fails", "corrects-the-paper": "corrects the paper"},
    {"holds": "hold", "corrects-the-paper": "correct the paper", "fails": "fail"},
)
"""Of a paper."""

CHECKS = Wording("check", {"holds": "passes", "fails": "fails"}, {"holds": "pass", "fails": "fail"})
"""Of an audit."""

_COMPARISONS = {"at most": "≤ ", "at least": "≥ "}


def number(value: str | float) -> str:
    """A value at the precision a reader compares."""
    return value if isinstance(value, str) else f"{value:.4g}"


def expectation(claim: Claim) -> str:
    """``≤ 1e-10``, ``0.5 (rel 0.01)`` or ``true``."""
    if claim.tolerance is None:
        return number(claim.expected)
    if claim.tolerance in _COMPARISONS:
        return f"{_COMPARISONS[str(claim.tolerance)]}{number(claim.expected)}"
    return f"{number(claim.expected)} ({claim.tolerance})"


def summary(claims: Sequence[Claim], wording: Wording = CLAIMS) -> str:
    """``21 claims: 17 hold, 4 correct the paper, 0 fail``."""
    counts = Counter(claim.verdict for claim in claims)
    parts = ", ".join(f"{counts[verdict]} {plural}" for verdict, plural in wording.plurals.items())
    return f"{len(claims)} {wording.noun}s: {parts}"
