"""A module at other numbers: where a module's own code is judged by what it computes, special ones mislead."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn


def twin_of(module: nn.Module, parameter: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """The same code, buffers and attributes with every parameter p replaced by ``parameter(p)``; tied ones stay tied.

    No deep copy: modules that keep results of a forward pass, as peers' feedback layers do, have none.
    """
    made: dict[int, nn.Parameter] = {}

    def replaced(p: nn.Parameter | None) -> nn.Parameter | None:
        if p is not None and id(p) not in made:
            made[id(p)] = nn.Parameter(parameter(p.detach()))
        return None if p is None else made[id(p)]

    def shallow(part: nn.Module) -> nn.Module:
        twin = copy.copy(part)
        twin._parameters = {name: replaced(p) for name, p in part._parameters.items()}
        twin._modules = {name: None if m is None else shallow(m) for name, m in part._modules.items()}
        return twin

    return shallow(module)
