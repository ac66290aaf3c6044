"""Character text that is on every machine: the source of Python's own standard library."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
import torch

from lawful.data.base import DataSet

CONTEXT = 64
"""Characters in one example."""

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
"""The vocabulary: printable ASCII and the end of line; anything else is left out."""

MODULES = (
    "argparse ast calendar configparser copy csv dataclasses datetime decimal difflib doctest enum fractions functools "
    "heapq inspect locale mailbox optparse pathlib pickle platform random shutil statistics string subprocess tarfile "
    "textwrap typing uuid zipfile"
).split()
"""Modules of long standing; one that the running Python keeps as a package is left out."""


def text() -> DataSet:
    """Next-character prediction, (n, 64) tokens: every 10th window of the source of 32 modules is for testing.

    The text is that of the running Python, so numbers compare within one version of it.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = [folder / f"{module}.py" for module in MODULES]
    source = "".join(path.read_text(encoding="utf-8") for path in files if path.exists())
    index = {character: i for i, character in enumerate(CHARACTERS)}
    tokens = torch.tensor([index[character] for character in source if character in index])
    windows = tokens[: (len(tokens) - 1) // CONTEXT * CONTEXT + 1]
    x, y = windows[:-1].view(-1, CONTEXT), windows[1:].view(-1, CONTEXT)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    test, train = order[::10], order[torch.arange(len(order)) % 10 != 0]
    return DataSet("text", x[train], y[train], x[test], y[test], len(CHARACTERS))
