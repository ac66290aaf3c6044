"""A claim: one sentence, what was expected of it, what was measured, and the verdict.

Claims carry no timings and no facts about the machine, so the same spec and seed give the same ``claims.json``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

from lawful.errors import SettingError

Verdict: TypeAlias = Literal["holds", "fails", "corrects-the-paper"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

SIGNIFICANT_DIGITS = 6
"""Digits kept of a measured number: what a reader compares, and coarse enough to survive another run's last bit."""

_ID = re.compile(r"[a-z0-9][a-z0-9-]*(\.[a-z0-9_-]+)*")


@dataclass(frozen=True)
class Claim:
    """A statement beside its measurement.

    Build one with `Claim.at_most`, `Claim.at_least`, `Claim.close` or `Claim.true`, which compute the
    verdict. A measured NaN fails every check.

    Args:
        id: Stable, documented name, such as ``"minnorm.stated.distance"``.
        source: Where it is stated: ``"Theorem 5.1"``, ``"Section 6"``.
        statement: One plain sentence.
        expected: The value, bound or truth that is expected.
        tolerance: How ``expected`` is compared: ``"at most"``, ``"at least"``, ``"rel 0.01"``, ``"abs 1e-10"`` or None.
        measured: What the run gave.
        verdict: ``"holds"``, ``"fails"``, or ``"corrects-the-paper"`` where the paper says otherwise and the statement
            made here instead was measured to be true.
    """

    id: str
    source: str
    statement: str
    expected: str | float
    tolerance: str | float | None
    measured: str | float
    verdict: Verdict

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise SettingError(
                f"a claim's id is lower-case words joined by dots, such as 'law.layer.drift'; got {self.id!r}"
            )
        if self.verdict not in VERDICTS:
            raise SettingError(
                f"verdict of claim {self.id!r}: expected one of {', '.join(VERDICTS)}; got {self.verdict!r}"
            )

    @property
    def ok(self) -> bool:
        """Whether the statement was measured to be true."""
        return self.verdict != "fails"

    @classmethod
    def at_most(
        cls, id: str, source: str, statement: str, measured: float, bound: float, *, corrects: bool = False
    ) -> Claim:
        """The claim ``measured ≤ bound``."""
        return cls(
            id, source, statement, float(bound), "at most", float(measured), _verdict(measured <= bound, corrects)
        )

    @classmethod
    def at_least(
        cls, id: str, source: str, statement: str, measured: float, bound: float, *, corrects: bool = False
    ) -> Claim:
        """The claim ``measured ≥ bound``."""
        return cls(
            id, source, statement, float(bound), "at least", float(measured), _verdict(measured >= bound, corrects)
        )

    @classmethod
    def close(
        cls,
        id: str,
        source: str,
        statement: str,
        measured: float,
        expected: float,
        *,
        rel: float = 0.0,
        abs: float = 0.0,
        corrects: bool = False,
    ) -> Claim:
        """The claim ``|measured − expected| ≤ max(rel·|expected|, abs)``."""
        if not (rel > 0 or abs > 0):
            raise SettingError(f"claim {id!r}: expected a tolerance rel > 0 or abs > 0; got rel={rel}, abs={abs}")
        slack = max(rel * math.fabs(expected), abs)
        named = [f"{name} {value:g}" for name, value in (("rel", rel), ("abs", abs)) if value > 0]
        passes = math.fabs(float(measured) - float(expected)) <= slack
        return cls(
            id, source, statement, float(expected), " or ".join(named), float(measured), _verdict(passes, corrects)
        )

    @classmethod
    def true(
        cls,
        id: str,
        source: str,
        statement: str,
        check: bool,
        *,
        measured: str | float | None = None,
        expected: str | float = "true",
        corrects: bool = False,
    ) -> Claim:
        """The claim ``check``; ``measured`` says in a few words or a number what was seen."""
        seen = str(bool(check)).lower() if measured is None else measured
        seen = seen if isinstance(seen, str) else float(seen)
        return cls(id, source, statement, expected, None, seen, _verdict(bool(check), corrects))


def _verdict(passes: bool, corrects: bool) -> Verdict:
    if not passes:
        return "fails"
    return "corrects-the-paper" if corrects else "holds"


def _canonical(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    # JSON has no infinities and no NaN.
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else str(value)


def claims_json(claims: Iterable[Claim]) -> str:
    """Claims as canonical JSON: in the order of the paper, numbers to six significant digits, one trailing newline."""
    rows = [{key: _canonical(value) for key, value in asdict(claim).items()} for claim in claims]
    return json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def claims_from_json(text: str) -> list[Claim]:
    """The claims of a ``claims.json``."""
    return [Claim(**row) for row in json.loads(text)]
