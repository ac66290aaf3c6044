"""A paper: its settings and the stages that measure its statements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from lawful.experiments.records import Section


class Progress(Protocol):
    """How a stage says how far it is.

    Attributes:
        scratch: A folder in which a long stage may keep what it goes on from when it is interrupted; None for nowhere.
    """

    scratch: Path | None

    def update(self, fraction: float, text: str = "") -> None:
        """The stage has done ``fraction`` (0 to 1) of its work; ``text`` names what it does now."""
        ...


class SilentProgress:
    """Progress that nobody watches, for tests and for calls from Python."""

    scratch: Path | None = None

    def update(self, fraction: float, text: str = "") -> None:
        """Does nothing."""


class Settings(Protocol):
    """A frozen dataclass whose fields are typed and have defaults: the knobs of ``--set``."""

    __dataclass_fields__: Any

    def validate(self) -> None:
        """Raises ``SettingError`` when a value is out of range or the values do not fit together."""
        ...


Stage: TypeAlias = Callable[[Any, int, Progress], Section]
"""``stage(settings, seed, progress) -> Section``; a module-level function, since it may run in another process."""


@dataclass(frozen=True)
class Paper:
    """A paper that ``lawful reproduce`` knows.

    Args:
        id: Its name on the command line.
        title: The paper's title.
        citation: One line: authors, venue, year, address.
        settings: Frozen dataclass of typed defaults with ``validate()``.
        quick: The settings that ``--quick`` replaces.
        stages: Stage id -> function, in the order of the report.
    """

    id: str
    title: str
    citation: str
    settings: type[Any]
    stages: Mapping[str, Stage]
    quick: Mapping[str, Any] = field(default_factory=dict)
