"""What every swapped class has: per weight its rule, and the rule's state as non-persistent buffers.

Buffers make ``.to``, ``deepcopy``, ``functional_call`` and ``vmap`` over stacked states carry B; being non-persistent
they stay out of ``state_dict``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from lawful.attachment.kernel import Transport
from lawful.rules.base import Rule


class Operand(NamedTuple):
    """What a kernel reads of one weight: W, B, and the rule's own transport if it has one."""

    weight: torch.Tensor
    B: torch.Tensor
    transport: Transport | None


def buffer_name(weight: str, key: str) -> str:
    """Where a leaf keeps the entry ``key`` of the rule state of its parameter ``weight``."""
    return f"lawful_{weight}_{key}"


# torch 2.6 cannot tell an export from a compilation; there the exported program keeps the feedback kernels.
_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


def sends_no_error() -> bool:
    """Whether no backward pass can follow (no grad mode, or an export): then torch's own forward pass will do."""
    if _is_exporting():
        return True
    return not torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active()


class FeedbackLeaf(nn.Module):
    """Mixin of every swapped class: what the rule says about this leaf's weights."""

    lawful_base: ClassVar[type[nn.Module]]
    lawful_leaf: ClassVar[type[FeedbackLeaf]]
    lawful_rules: dict[str, Rule]
    lawful_keys: dict[str, tuple[str, ...]]

    def rule_state(self, weight: str) -> dict[str, torch.Tensor]:
        """The live state of the rule for the parameter ``weight``."""
        return {key: getattr(self, buffer_name(weight, key)) for key in self.lawful_keys[weight]}

    def operand(self, name: str) -> Operand:
        """W, B and transport of the weight ``name`` as they are now; no gradient flows into B."""
        weight = getattr(self, name)  # read once: a parametrization may compute it anew at every access
        rule = self.lawful_rules[name]
        B = rule.feedback(weight.detach(), self.rule_state(name))
        return Operand(weight, B, None if type(rule).transport is Rule.transport else rule.transport)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Swapped classes are made at run time, so copies and pickles name what they were made from."""
        return _revive, (self.lawful_leaf, self.lawful_base), self.__getstate__()  # pyright: ignore[reportAttributeAccessIssue]


_MADE: dict[tuple[type[FeedbackLeaf], type[nn.Module]], type[FeedbackLeaf]] = {}


def feedback_class(leaf: type[FeedbackLeaf], base: type[nn.Module]) -> type[FeedbackLeaf]:
    """The class that puts ``leaf``'s forward pass on modules of the type ``base``."""
    if (leaf, base) not in _MADE:
        body = {"lawful_leaf": leaf, "lawful_base": base, "__module__": base.__module__, "__doc__": base.__doc__}
        _MADE[leaf, base] = type(f"Feedback{base.__name__}", (leaf, base), body)
    return _MADE[leaf, base]


def _revive(leaf: type[FeedbackLeaf], base: type[nn.Module]) -> nn.Module:
    made = feedback_class(leaf, base)
    return made.__new__(made)
