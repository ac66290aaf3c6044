"""The step of an optimiser, split by cause: the rule's own −lr·g, weight decay, momentum, preconditioning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch.optim import SGD, Adam, AdamW
from torch.optim.optimizer import Optimizer

RULE: Final = "rule"
DECAY: Final = "weight decay"
MOMENTUM: Final = "momentum"
PRECONDITIONING: Final = "preconditioning"
UNSPLIT: Final = "optimiser (unsplit)"

Step = dict[str, torch.Tensor]
"""Cause -> its part of one parameter's step; they add up to the step."""

Tensors = Mapping[str, torch.Tensor]


def _sgd(
    group: dict[str, Any], state: dict[str, Any], weight: torch.Tensor, g: torch.Tensor, delta: torch.Tensor
) -> Step:
    parts = _first(group, weight, g)
    if group["momentum"]:
        parts[MOMENTUM] = delta - _total(parts)
    return parts


def _adam(
    group: dict[str, Any], state: dict[str, Any], weight: torch.Tensor, g: torch.Tensor, delta: torch.Tensor
) -> Step:
    parts = _first(group, weight, g)
    lr, beta = float(group["lr"]), float(group["betas"][0])
    mean = state["exp_avg"].to(g) / (1 - beta ** float(state["step"]))
    coupled = 0.0 if group.get("decoupled_weight_decay") else group["weight_decay"]
    parts[MOMENTUM] = -lr * (mean - g - coupled * weight)
    parts[PRECONDITIONING] = delta - _total(parts)
    return parts


def _diagonal(
    group: dict[str, Any], state: dict[str, Any], weight: torch.Tensor, g: torch.Tensor, delta: torch.Tensor
) -> Step:
    parts = _first(group, weight, g)
    parts[PRECONDITIONING] = delta - _total(parts)
    return parts


def _other(
    group: dict[str, Any], state: dict[str, Any], weight: torch.Tensor, g: torch.Tensor, delta: torch.Tensor
) -> Step:
    rule = -float(group.get("lr", 1.0)) * g
    return {RULE: rule, UNSPLIT: delta - rule}


def _first(group: dict[str, Any], weight: torch.Tensor, g: torch.Tensor) -> Step:
    lr, decay = float(group["lr"]), group.get("weight_decay", 0)
    parts = {RULE: -lr * g}
    if decay:
        parts[DECAY] = -lr * decay * weight
    return parts


def _total(parts: Step) -> torch.Tensor:
    total = torch.zeros_like(next(iter(parts.values())))
    for part in parts.values():
        total = total + part
    return total


SPLITS: Final[
    dict[type[Optimizer], Callable[[dict[str, Any], dict[str, Any], torch.Tensor, torch.Tensor, torch.Tensor], Step]]
] = {
    SGD: _sgd,
    Adam: _adam,
    AdamW: _adam,
    torch.optim.RMSprop: _diagonal,
    torch.optim.Adagrad: _diagonal,
}
"""Optimiser -> how its step is split; any other is "optimiser (unsplit)"."""


def directions(
    optimizer: Optimizer, parameters: Tensors, before: Tensors, delta: Tensors
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, float]]:
    """The step just taken, by cause and parameter, and the learning rate of every parameter that took one.

    Args:
        optimizer: its state is that after the step, and its gradients are still in place.
        parameters: the parameters themselves, by dotted name.
        before: their values before the step.
        delta: their total change.
    """
    split = SPLITS.get(type(optimizer), _other)
    names = {id(p): name for name, p in parameters.items()}
    steps: dict[str, dict[str, torch.Tensor]] = {RULE: {}}
    lrs: dict[str, float] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            name = names.get(id(p))
            if name is None or p.grad is None:
                continue
            g = p.grad.detach()
            g = -g if group.get("maximize") else g
            lrs[name] = float(group.get("lr", 1.0))
            for cause, part in split(group, optimizer.state[p], before[name], g, delta[name]).items():
                steps.setdefault(cause, {})[name] = part
    return steps, lrs


def plain_steps(optimizer: Optimizer, parameters: Tensors) -> dict[str, torch.Tensor] | None:
    """−lr·g for plain SGD, whose step is known beforehand; None for anything else."""
    if type(optimizer) is not SGD or any(
        group["momentum"] or group["weight_decay"] or group["maximize"] for group in optimizer.param_groups
    ):
        return None
    lrs = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    if any(id(p) in lrs and p.grad is None and p.requires_grad for p in parameters.values()):
        return None  # a closure will fill it
    return {
        name: torch.zeros_like(p) if p.grad is None or id(p) not in lrs else p.grad * -lrs[id(p)]
        for name, p in parameters.items()
    }
