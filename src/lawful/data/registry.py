"""Every data set by the name that the command line uses; its module is imported when it is loaded."""

from __future__ import annotations

import importlib
from typing import Final

from lawful.data.base import DataSet
from lawful.errors import SettingError

DATA: Final[dict[str, str]] = {
    "digits": "lawful.data.images:digits",
    "mnist5k": "lawful.data.images:mnist5k",
    "fashion": "lawful.data.images:fashion",
    "mnist1d": "lawful.data.series:mnist1d",
    "text": "lawful.data.text:text",
}
"""Name -> ``module:loader``."""


def load_data(name: str) -> DataSet:
    """The data set of this name; nothing is downloaded.

    Raises:
        SettingError: no such name, or its files or package are not installed.
    """
    if name not in DATA:
        raise SettingError(f"data must be one of {', '.join(DATA)}; got {name!r}")
    module, _, loader = DATA[name].partition(":")
    return getattr(importlib.import_module(module), loader)()
