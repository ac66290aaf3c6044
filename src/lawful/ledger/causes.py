"""The step of an optimiser, split by cause: the rule's own −lr·g, weight decay, momentum, preconditioning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, RMSprop
from torch.optim.optimizer import Optimizer, _default_to_fused_or_foreach

from lawful.conservation.combination import Combination, Moves, Quotient

RULE: Final = "rule"
DECAY: Final = "weight decay"
MOMENTUM: Final = "momentum"
PRECONDITIONING: Final = "preconditioning"
UNSPLIT: Final = "optimiser (unsplit)"

Group = Mapping[str, Any]
State = Mapping[str, Any]
Names = Mapping[int, Sequence[str]]
Parts = tuple[dict[str, Combination], str]
"""Cause -> its part of one parameter's step, and the cause of all the rest ("" where nothing is left)."""


def _sgd(group: Group, state: State, weight: Combination, g: Combination) -> Parts:
    return _first(group, weight, g), MOMENTUM if group["momentum"] else ""


def _adam(group: Group, state: State, weight: Combination, g: Combination) -> Parts:
    return _adaptive(group, state, weight, g, 0.0 if group.get("decoupled_weight_decay") else group["weight_decay"])


def _adamw(group: Group, state: State, weight: Combination, g: Combination) -> Parts:
    return _adaptive(group, state, weight, g, 0.0)


def _adaptive(group: Group, state: State, weight: Combination, g: Combination, coupled: float) -> Parts:
    """m̂ averages g + λW where the decay is coupled."""
    correction = 1 - float(group["betas"][0]) ** float(state["step"])
    mean = (1 / correction) * Combination(state["exp_avg"])
    taken = g + coupled * weight if coupled else g
    momentum = -float(group["lr"]) * (mean - taken)
    return {**_first(group, weight, g), MOMENTUM: momentum}, PRECONDITIONING


def _diagonal(group: Group, state: State, weight: Combination, g: Combination) -> Parts:
    return _first(group, weight, g), PRECONDITIONING


def _other(group: Group, state: State, weight: Combination, g: Combination) -> Parts:
    return {RULE: -float(group.get("lr", 1.0)) * g}, UNSPLIT


def _searching(group: Group, state: State, weight: Combination, g: Combination) -> Parts:
    """Its last gradient was not taken at the weights before the step."""
    return {}, UNSPLIT


def _first(group: Group, weight: Combination, g: Combination) -> dict[str, Combination]:
    lr, decay = float(group["lr"]), float(group.get("weight_decay", 0))
    return {RULE: -lr * g} | ({DECAY: -lr * decay * weight} if decay else {})


SPLITS: Final[dict[type[Optimizer], Callable[[Group, State, Combination, Combination], Parts]]] = {
    SGD: _sgd,
    Adam: _adam,
    AdamW: _adamw,
    RMSprop: _diagonal,
    Adagrad: _diagonal,
    LBFGS: _searching,
}
"""Optimiser -> how its step is split; of any other only −lr·g is known, and the rest is "optimiser (unsplit)"."""


@dataclass
class Split:
    """One step by cause.

    Attributes:
        parts: cause -> its part of the step, by parameter.
        rest: the cause of what the parts leave of the step; "" if that is nothing.
        lrs: the learning rate of every parameter that took a step.
    """

    parts: dict[str, dict[str, Combination]] = field(default_factory=dict)
    rest: str = ""
    lrs: dict[str, float] = field(default_factory=dict)


def names_of(tracked: Mapping[str, torch.Tensor]) -> Names:
    """The dotted names of every parameter, by its id."""
    names: dict[int, list[str]] = {}
    for name, p in tracked.items():
        names.setdefault(id(p), []).append(name)
    return names


def _members(optimizer: Optimizer, names: Names) -> Iterator[tuple[dict, torch.Tensor, str]]:
    """(group, parameter, dotted name) of the optimiser's tracked parameters; a shared one has several names."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            for name in names.get(id(p), ()):
                yield group, p, name


def owned(optimizer: Optimizer, names: Names) -> dict[str, torch.Tensor]:
    """The tracked parameters that the optimiser may move."""
    return {name: p for _, p, name in _members(optimizer, names) if p.requires_grad}


def split_step(optimizer: Optimizer, names: Names, before: Moves) -> Split:
    """The step just taken, by cause.

    Args:
        optimizer: its state is that after the step, and its gradients are still in place.
        names: those of the tracked parameters.
        before: their values before the step.
    """
    parts_of = SPLITS.get(type(optimizer), _other)
    split = Split({} if parts_of is _searching else {RULE: {}})
    for group, p, name in _members(optimizer, names):
        if p.grad is None:
            continue
        split.lrs[name] = float(group.get("lr", 1.0))
        parts, rest = parts_of(group, optimizer.state[p], before[name], gradient(optimizer, group, p))
        for cause, part in parts.items():
            if part:
                split.parts.setdefault(cause, {})[name] = part
        split.rest = split.rest or rest
    return split


def gradient(optimizer: Optimizer, group: Group, p: torch.Tensor) -> Combination:
    """What the step took for the gradient: −grad where it maximises."""
    assert p.grad is not None
    g = _dense(p.grad)
    if type(optimizer) is SGD and group["nesterov"] and not (group["maximize"] or group["weight_decay"]):
        foreach, fused = group["foreach"], group["fused"]
        if foreach is None and not fused:
            foreach = _default_to_fused_or_foreach(group["params"], group["differentiable"])[1]
        if foreach:  # torch adds the momentum to the gradients in place
            g = g - group["momentum"] * _dense(optimizer.state[p]["momentum_buffer"])
    return -1.0 * g if group.get("maximize") else g


def _dense(x: torch.Tensor) -> Combination:
    return Combination(x.to_dense() if x.is_sparse else x)


def is_retraceable(optimizer: Optimizer) -> bool:
    """Whether :func:`retrace` knows the step: of SGD unless lr·λ = 1, where W is forgotten, and of Adam by numbers.

    Not of Adam in half precision, nor where torch takes its bias corrections in float32 (tensors for lr or β,
    ``capturable``), nor with decoupled decay: W·(1 − lr·λ) is rounded alike at step after step.
    """
    known = _RETRACED.get(type(optimizer))
    return known is not None and all([known[0](group) for group in optimizer.param_groups])


def retrace(optimizer: Optimizer, names: Names) -> dict[str, Combination]:
    """The step that SGD or Adam has just taken, from what it leaves behind, so that no copy of W is needed."""
    step_of = _RETRACED[type(optimizer)][1]
    steps: dict[str, Combination] = {}
    for group, p, name in _members(optimizer, names):
        if p.grad is not None and (step := step_of(optimizer, group, p)):
            steps[name] = step
    return steps


def _keeps_weight(group: Group) -> bool:
    return float(group["lr"]) * float(group["weight_decay"]) != 1


def _sgd_step(optimizer: Optimizer, group: Group, p: torch.Tensor) -> Combination:
    """Δ = −lr·u with the momentum buffer u; without one, or by Nesterov, Δ = −lr(g + λW + μu).

    In terms of W + Δ that is −lr/(1 − lrλ) · (g + λ(W + Δ) + μu).
    """
    lr, decay, momentum = float(group["lr"]), float(group["weight_decay"]), float(group["momentum"])
    if not momentum and not decay:
        return -lr * gradient(optimizer, group, p)
    if momentum and not group["nesterov"]:
        return -lr * _dense(optimizer.state[p]["momentum_buffer"])
    force = gradient(optimizer, group, p) + decay * Combination(p)
    if momentum:
        force = force + momentum * _dense(optimizer.state[p]["momentum_buffer"])
    return -lr / (1 - lr * decay) * force


def _is_of_numbers(group: Group) -> bool:
    decoupled = group["weight_decay"] and group.get("decoupled_weight_decay")
    tensors = [isinstance(number, torch.Tensor) for number in (group["lr"], *group["betas"])]
    return not (group["capturable"] or decoupled or any(tensors)) and all([p.itemsize > 2 for p in group["params"]])


def _is_without_decay(group: Group) -> bool:
    return not group["weight_decay"] and _is_of_numbers(group)


def _adam_step(optimizer: Optimizer, group: Group, p: torch.Tensor) -> Combination:
    """Δ = −lr·m̂ / (√v̂ + ε)."""
    state, lr, (beta1, beta2) = optimizer.state[p], float(group["lr"]), group["betas"]
    t = float(state["step"])
    root = (1 - beta2**t) ** 0.5
    v = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    direction = Quotient(state["exp_avg"], v, root * float(group["eps"]))
    return -lr * root / (1 - beta1**t) * Combination(direction)


_RETRACED: Final = {
    SGD: (_keeps_weight, _sgd_step),
    Adam: (_is_of_numbers, _adam_step),
    AdamW: (_is_without_decay, _adam_step),
}
"""Optimiser -> whether the step of a group's parameters can be told afterwards, and how."""
