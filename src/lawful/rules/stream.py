"""Randomness that goes on during training: a stream kept as two integers in a rule's state, so that it can resume."""

from __future__ import annotations

import torch

from lawful.rules.base import generator_for


def new_stream(weight: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The state entries of a stream at step 0: its ``key``, drawn from ``generator``, and its ``step``."""
    key = torch.randint(2**62, (), generator=generator)
    return {"key": key.to(weight.device), "step": torch.zeros_like(key, device=weight.device)}


def advance(state: dict[str, torch.Tensor]) -> torch.Generator:
    """Count one step, in place, and return the generator of that step: a function of (key, step) alone."""
    state["step"] += 1
    return generator_for(int(state["key"]), f"step {int(state['step'])}")
