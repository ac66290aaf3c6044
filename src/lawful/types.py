"""The shapes of data that the whole house agrees on."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, TypeAlias

import torch

Array: TypeAlias = Any
"""A torch tensor, a NumPy array, or any array that names its namespace by ``__array_namespace__``."""

State: TypeAlias = Mapping[str, Array]
"""What a rule stores for one weight, by name: ``{"B": …}`` for feedback alignment, ``{}`` for backpropagation."""

Theta: TypeAlias = Mapping[str, Array]
"""All parameters of a model by dotted name."""


def namespace(x: Array) -> ModuleType:
    """The module whose functions act on ``x`` (``torch``, ``numpy``, …), so that a formula is written once."""
    return torch if isinstance(x, torch.Tensor) else x.__array_namespace__()
