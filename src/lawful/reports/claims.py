"""The words and signs in which a claim is shown, in the terminal and in the report alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from lawful.experiments.claims import Claim, Verdict

SIGNS: Mapping[Verdict, str] = {"holds": "✓", "fails": "✗", "corrects-the-paper": "≠"}
"""A sign beside the colour, for readers who see no colours."""

WORDS: Mapping[Verdict, str] = {"holds": "holds", "fails": "fails", "corrects-the-paper": "corrects the paper"}

PLURALS: Mapping[Verdict, str] = {"holds": "hold", "fails": "fail", "corrects-the-paper": "correct the paper"}

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


def summary(claims: Sequence[Claim]) -> str:
    """``21 claims: 17 hold, 4 correct the paper, 0 fail``."""
    counts = Counter(claim.verdict for claim in claims)
    return (
        f"{len(claims)} claims: {counts['holds']} hold, {counts['corrects-the-paper']} correct the paper,"
        f" {counts['fails']} fail"
    )
