"""What every swapped class has: per weight its rule, and the rule's state as non-persistent buffers.

Buffers make ``.to``, ``deepcopy``, ``functional_call`` and ``vmap`` over stacked states carry B; being non-persistent
they stay out of ``state_dict``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from lawful.attachment.kernel import Operand, Transport
from lawful.rules.base import Rule
from lawful.rules.stored_feedback import StoredFeedback

SMALL = 2**16
"""Elements of a weight up to which the memory of its B does not show, while the cost of Python does."""


def buffer_name(weight: str, key: str) -> str:
    """Where a leaf keeps the entry ``key`` of the rule state of its parameter ``weight``."""
    return f"lawful_{weight}_{key}"


class Feedback(NamedTuple):
    """How a leaf makes the B of one of its weights; worked out at attachment, so that a step does not have to."""

    rule: Rule
    buffers: Mapping[str, str]
    """Key of the rule's state -> the buffer that holds it."""
    make: Callable[..., torch.Tensor]
    """B = make(W, *state)."""
    transport: Transport | None
    stored: str | None
    """The buffer that is B itself, where the rule only keeps it."""
    is_light: bool
    """Whether errors travel as δB by a B that costs no memory to speak of: it is stored, or the weight is small."""

    @classmethod
    def of(cls, rule: Rule, name: str, weight: torch.Tensor, state: Mapping[str, torch.Tensor]) -> Feedback:
        """Of a rule, for the parameter ``name``, a ``weight`` with the rule's ``state``."""
        transport = None if type(rule).transport is Rule.transport else rule.transport
        buffers = {key: buffer_name(name, key) for key in state}
        is_stored = getattr(rule.feedback, "__func__", None) is StoredFeedback.feedback
        is_light = transport is None and (is_stored or weight.numel() <= SMALL or _only_reads(rule, weight, state))
        make = partial(_feedback, rule, tuple(state))
        return cls(rule, buffers, make, transport, buffers["B"] if is_stored else None, is_light)


def _only_reads(rule: Rule, weight: torch.Tensor, state: Mapping[str, torch.Tensor]) -> bool:
    B = rule.feedback(weight.detach(), state)
    return any(B is tensor for tensor in state.values())


def _feedback(rule: Rule, keys: tuple[str, ...], weight: torch.Tensor, *state: torch.Tensor) -> torch.Tensor:
    return rule.feedback(weight, dict(zip(keys, state, strict=True)))


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
    lawful_feedback: dict[str, Feedback]
    """By weight."""

    def rule_state(self, weight: str) -> dict[str, torch.Tensor]:
        """The live state of the rule for the parameter ``weight``."""
        entries: Any = self._buffers
        return {key: entries[buffer] for key, buffer in self.lawful_feedback[weight].buffers.items()}

    def operand(self, name: str) -> Operand:
        """The weight ``name`` and what its B is made of, as they are now."""
        _, buffers, make, transport, *_ = self.lawful_feedback[name]
        entries = self._buffers
        sources: Any = tuple([entries[buffer] for buffer in buffers.values()])
        return Operand(getattr(self, name), sources, make, transport)  # one read: a parametrization computes it anew

    def operand_with_B(self, name: str) -> Operand:
        """The same with B made now: for weights that are cut to pieces, or used many times in one forward pass."""
        operand = self.operand(name)
        return Operand(operand.weight, (operand.B,), transport=operand.transport)

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
