"""Weights that a module computes from other parameters: weight_norm, spectral_norm, pruning, parametrize."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

_SUFFIXES = ("_orig", "_g", "_v")
"""What weight_norm, spectral_norm and prune append to the name of the weight they take apart."""


def computed_weights(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Name of each computed weight -> the module's own parameters that it is computed from."""
    found: dict[str, list[str]] = {}
    if parametrize.is_parametrized(module):
        lists: Any = module.parametrizations
        found |= {name: [] for name in lists}
    for parameter in module._parameters:
        for suffix in _SUFFIXES:
            name = parameter.removesuffix(suffix)
            if name != parameter and isinstance(module.__dict__.get(name), torch.Tensor):
                found.setdefault(name, []).append(parameter)
    return {name: tuple(parts) for name, parts in found.items()}


def read_weight(module: nn.Module, name: str) -> torch.Tensor:
    """A weight as it is now; reading it outside a forward pass must not advance spectral_norm's power iteration."""
    if not parametrize.is_parametrized(module, name):
        return getattr(module, name)
    steps: Any = module.parametrizations
    modes = {step: step.training for step in steps[name].modules()}
    try:
        steps[name].eval()
        return getattr(module, name)
    finally:
        for step, training in modes.items():
            step.training = training
