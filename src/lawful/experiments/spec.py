"""A spec says everything that a run's numbers depend on: paper, settings, seed; canonical JSON, and its SHA-256."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lawful.errors import SettingError
from lawful.experiments.paper import Paper

MAX_SEED = 2**32 - 1
"""The largest seed that every random generator in use accepts."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """One run of one paper.

    Args:
        paper: The paper's id.
        settings: An instance of the paper's settings.
        seed: The seed that all randomness derives from.
    """

    paper: str
    settings: Any
    seed: int = 0

    @property
    def json(self) -> str:
        """Canonical JSON: sorted keys, shortest round-trip numbers, one trailing newline."""
        data = {"paper": self.paper, "seed": self.seed, "settings": dataclasses.asdict(self.settings)}
        return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.json.encode()).hexdigest()


def make_spec(paper: Paper, assignments: Sequence[str] = (), *, seed: int = 0, quick: bool = False) -> Spec:
    """The spec of ``paper`` with its defaults, then ``--quick``, then each ``key=value``; validated.

    Raises:
        SettingError: An unknown key, a value of the wrong type or out of range.
    """
    if not 0 <= seed <= MAX_SEED:
        raise SettingError(f"expected a seed from 0 to {MAX_SEED}; got {seed}")
    values = dict(paper.quick) if quick else {}
    values |= parse_assignments(paper.settings, assignments)
    settings = paper.settings(**values)
    try:
        settings.validate()
    except SettingError as error:
        raise SettingError(f"{error} (settings: {describe_settings(paper.settings)})") from error
    return Spec(paper.id, settings, seed)


def parse_assignments(settings: type[Any], assignments: Sequence[str]) -> dict[str, Any]:
    """``["n=30", "lr=0.1"]`` as values of the types that the settings dataclass declares."""
    kinds = setting_types(settings)
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise SettingError(
                f"expected key=value; got {assignment!r} (allowed settings: {describe_settings(settings)})"
            )
        if key not in kinds:
            raise SettingError(f"unknown setting {key!r}; allowed settings: {describe_settings(settings)}")
        if key in values:
            raise SettingError(f"setting {key!r} is given twice; give it once")
        try:
            values[key] = _parse(kinds[key], text)
        except ValueError:
            raise SettingError(
                f"setting {key}: expected {type_name(kinds[key])}; got {text!r}"
                f" (allowed settings: {describe_settings(settings)})"
            ) from None
    return values


def setting_types(settings: type[Any]) -> dict[str, Any]:
    """Field name -> declared type, in the order of the dataclass."""
    hints = get_type_hints(settings)
    return {field.name: hints[field.name] for field in dataclasses.fields(settings)}


def describe_settings(settings: type[Any]) -> str:
    """``n: int = 50, lr: float = 0.1, …``: every key with its type and default."""
    defaults = dataclasses.asdict(settings())
    return ", ".join(
        f"{key}: {type_name(kind)} = {show_value(defaults[key])}" for key, kind in setting_types(settings).items()
    )


def type_name(kind: Any) -> str:
    """A declared type in words that a reader of an error message knows."""
    args = get_args(kind)
    if get_origin(kind) is Literal:
        return "|".join(map(str, args))
    if get_origin(kind) is tuple:
        return f"{type_name(args[0])},{type_name(args[0])},…"
    if get_origin(kind) in (Union, types.UnionType):
        return "|".join(map(type_name, args))
    return "none" if kind is type(None) else kind.__name__


def show_value(value: Any) -> str:
    """A setting's value as ``--set`` takes it."""
    if isinstance(value, tuple | list):
        return ",".join(map(show_value, value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def _parse(kind: Any, text: str) -> Any:
    """``text`` as a ``kind``; ValueError when it is none."""
    args = get_args(kind)
    if get_origin(kind) is Literal:
        return _one_of({str(arg): arg for arg in args}, text)
    if get_origin(kind) is tuple:
        return tuple(_parse(args[0], part.strip()) for part in text.split(","))
    if get_origin(kind) in (Union, types.UnionType):
        return _first_that_parses(args, text)
    return _PARSERS[kind](text)


def _one_of(choices: Mapping[str, Any], text: str) -> Any:
    if text not in choices:
        raise ValueError(text)
    return choices[text]


def _first_that_parses(kinds: Sequence[Any], text: str) -> Any:
    for kind in kinds:
        try:
            return _parse(kind, text)
        except ValueError:
            continue
    raise ValueError(text)


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


_PARSERS: dict[Any, Callable[[str], Any]] = {
    int: int,
    float: _parse_float,
    str: str,
    bool: lambda text: _one_of({"true": True, "false": False}, text.lower()),
    type(None): lambda text: _one_of({"none": None}, text.lower()),
}
