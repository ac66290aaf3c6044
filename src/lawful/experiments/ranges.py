"""The check that the settings of every paper share: integers within limits, and positive numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lawful.errors import SettingError


def check_ranges(settings: Any, integers: Mapping[str, tuple[int, int]]) -> None:
    """Check types and ranges of a settings dataclass.

    Args:
        settings: its fields of type int and float are looked at; floats are finite numbers > 0.
        integers: the least and greatest value of each int field.

    Raises:
        SettingError: one line that names the key, the allowed values and what came.
    """
    for field in fields(settings):
        name, value = field.name, getattr(settings, field.name)
        if field.type == "int":
            low, high = integers[name]
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise SettingError(f"{name} must be an integer from {low} to {high}; got {value!r}")
        if field.type == "float":
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and value > 0):
                raise SettingError(f"{name} must be a finite number > 0; got {value!r}")
