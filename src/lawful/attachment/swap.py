"""Swap the class of a leaf in place: the same parameters and forward pass, with B in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lawful.attachment.leaf import Feedback, FeedbackLeaf, buffer_name, feedback_class
from lawful.attachment.reparametrised import read_weight
from lawful.errors import AttachmentError
from lawful.rules.base import Rule


def swap(
    module: nn.Module, leaf: type[FeedbackLeaf], rules: dict[str, Rule], states: dict[str, dict[str, torch.Tensor]]
) -> None:
    """Turn ``module``, in place, into its feedback class."""
    feedback = {w: Feedback.of(rules[w], w, read_weight(module, w), state) for w, state in states.items()}
    module.__class__ = feedback_class(leaf, type(module))
    swapped: Any = module
    swapped.lawful_feedback = feedback
    for weight, state in states.items():
        for key, tensor in state.items():
            module.register_buffer(buffer_name(weight, key), tensor, persistent=False)


def unswap(module: FeedbackLeaf) -> None:
    """Undo :func:`swap`: the class, and nothing of the rule left behind."""
    if type(module) is not feedback_class(module.lawful_leaf, module.lawful_base):
        raise AttachmentError(
            f"expected {module.lawful_base.__name__} with feedback; got {type(module).__name__}: something "
            "(fully_shard, a parametrization) changed the module's class after lawful.attach; undo that first"
        )
    for feedback in module.lawful_feedback.values():
        for buffer in feedback.buffers.values():
            delattr(module, buffer)
    del module.lawful_feedback
    object.__setattr__(module, "__class__", module.lawful_base)
