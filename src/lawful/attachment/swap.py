"""Leaves whose class is swapped: the same parameters and forward pass, with feedback weights in the backward pass.

A leaf keeps, per weight, the rule in ``lawful_rules`` and the rule's state as non-persistent buffers, so that ``.to``,
``deepcopy``, ``functional_call`` and ``vmap`` over stacked states all carry B, and ``state_dict`` does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lawful.attachment import kernels
from lawful.rules.base import Rule

Transport = kernels.Transport


def buffer_name(weight: str, key: str) -> str:
    """Where a leaf keeps the entry ``key`` of the rule state of its parameter ``weight``."""
    return f"lawful_{weight}_{key}"


class FeedbackLeaf(nn.Module):
    """Mixin of every swapped class: what the rule says about this leaf's weights."""

    lawful_rules: dict[str, Rule]
    lawful_keys: dict[str, tuple[str, ...]]

    def rule_state(self, weight: str) -> dict[str, torch.Tensor]:
        """The live state of the rule for the parameter ``weight``."""
        return {key: getattr(self, buffer_name(weight, key)) for key in self.lawful_keys[weight]}

    def feedback_weight(self, weight: str) -> torch.Tensor:
        """B, as the rule gives it now; no gradient flows into it."""
        return self.lawful_rules[weight].feedback(getattr(self, weight).detach(), self.rule_state(weight))

    def transport_of(self, weight: str) -> Transport | None:
        """The rule's own ``transport``, or None for the plain adjoint, which kernels do fastest."""
        rule = self.lawful_rules[weight]
        return None if type(rule).transport is Rule.transport else rule.transport


class FeedbackLinear(FeedbackLeaf, nn.Linear):
    """``nn.Linear`` whose input receives δB."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's own name
        """``F.linear``, bitwise."""
        return kernels.linear(
            input, self.weight, self.bias, self.feedback_weight("weight"), self.transport_of("weight")
        )


SWAPS: dict[type[nn.Module], tuple[type[FeedbackLeaf], tuple[str, ...]]] = {
    nn.Linear: (FeedbackLinear, ("weight",)),
}
"""Module type -> its feedback class and the names of the weights that carry errors."""


def swap(module: nn.Module, rules: dict[str, Rule], states: dict[str, dict[str, torch.Tensor]]) -> None:
    """Turn ``module``, in place, into its feedback class."""
    module.__class__ = SWAPS[type(module)][0]
    leaf: Any = module
    leaf.lawful_rules = rules
    leaf.lawful_keys = {weight: tuple(state) for weight, state in states.items()}
    for weight, state in states.items():
        for key, tensor in state.items():
            leaf.register_buffer(buffer_name(weight, key), tensor, persistent=False)


def unswap(module: FeedbackLeaf) -> None:
    """Undo :func:`swap`: the class, and nothing of the rule left behind."""
    for weight, keys in module.lawful_keys.items():
        for key in keys:
            delattr(module, buffer_name(weight, key))
    del module.lawful_rules, module.lawful_keys
    module.__class__ = next(base for base, (feedback, _) in SWAPS.items() if feedback is type(module))
