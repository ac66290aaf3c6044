"""The ``scale`` that rules with random feedback take: its check, and its text in the call that makes the rule."""

from __future__ import annotations

from lawful.errors import SettingError


def check_scale(rule: str, scale: float | None) -> None:
    """Refuse a ``scale`` that is no standard deviation.

    Raises:
        SettingError: ``scale`` is negative, infinite or not a number.
    """
    if scale is not None and not 0 <= scale < float("inf"):
        raise SettingError(f"{rule}: scale must be a finite number >= 0; got {scale!r}")


def scale_text(scale: float | None) -> str:
    """``, scale=…`` for the call that makes a rule; nothing for the default."""
    return "" if scale is None else f", scale={scale!r}"
