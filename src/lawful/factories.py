"""The user's own models by ``module:factory``, for every verb that takes one."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from typing import Any, TypeVar

from lawful.errors import SettingError

T = TypeVar("T")


def made_by(text: str, what: str, kind: type[T], expected: str) -> T:
    """What ``module:factory``, called without arguments, returns.

    Args:
        text: "my_models:resnet"; the module is found as ``python -c`` in this folder would find it.
        what: begins the errors: "--module".
        kind: what it must return.
        expected: the same in words: "an nn.Module".

    Raises:
        SettingError: no such module or name; the name is no function without arguments; it, or the import, failed (the
            cause is kept); it returned something else.
    """
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise SettingError(f"{what}: expected module:factory, such as my_models:resnet; got {text!r}")
    where = f"{what} {text!r}".strip()
    make = _named(module, name, where)
    try:
        made = make()
    except Exception as error:  # the user's code may raise anything
        raise SettingError(f"{where}: {name}() raised {_told(error)}") from error
    if not isinstance(made, kind):
        raise SettingError(f"{where}: expected {name}() to return {expected}; got {type(made).__name__}")
    return made


def _named(module: str, name: str, where: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")  # the user's own files, as `python -c` would find them
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        inner = "" if error.name and f"{module}.".startswith(f"{error.name}.") else f", which {module} imports"
        raise SettingError(f"{where}: {error}{inner}") from error
    except Exception as error:  # the user's code may raise anything
        raise SettingError(f"{where}: importing {module} raised {_told(error)}") from error
    if not hasattr(found, name):
        raise SettingError(f"{where}: module {module!r} has no attribute {name!r}")
    make = getattr(found, name)
    if not callable(make):
        raise SettingError(f"{where}: {name} is a {type(make).__name__}; expected a function without arguments")
    missing = _required(make)
    if missing:
        raise SettingError(
            f"{where}: {name} is called without arguments, but needs {', '.join(missing)}; write a function that gives "
            "them"
        )
    return make


def _required(make: Any) -> list[str]:
    try:
        parameters = inspect.signature(make).parameters.values()
    except ValueError:
        return []  # a built-in that does not say what it takes
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]


def _told(error: Exception) -> str:
    """The error in a line, and the place in the code that raised it."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    frames = [frame for frame in frames if not frame.filename.startswith("<frozen")]
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else text
