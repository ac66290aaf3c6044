"""The shortest way to send an error through B: torch's own operation, whose graph holds B where it would hold W.

Autograd keeps W for one purpose, the error δW that the layer sends back. Hooks on that one saved tensor (torch's "Hooks
for saved tensors") drop it and make B when the backward pass asks for it. Everything else stays torch's, in C++: where
layers are small, the Python of an autograd Function costs more than their products. But a B that was made lives until
the node is done, while a Function lets go of it before ∂W is allocated: so not for a large B that has to be made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from lawful.attachment.guard import refuse
from lawful.errors import ChangedInPlaceError
from lawful.rules.base import Rule

# On small layers, to look these names up anew would be a good part of the cost.
_PLAIN = (torch.Tensor, nn.Parameter)
_Tensor = torch.Tensor
_is_compiling = torch.compiler.is_compiling
_is_transformed = torch._C._are_functorch_transforms_active
_is_autocast = torch._C._is_any_autocast_enabled
_version = attrgetter("_version")
_forget: Callable[[torch.Tensor], None] = deque(maxlen=0).append  # a call into C that keeps nothing
_saved_tensors_hooks: Callable[[bool], Any] = torch._C._autograd._top_saved_tensors_default_hooks  # pyright: ignore[reportAttributeAccessIssue]


def is_swappable(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether ``F.linear(x, W, b)`` makes the one graph that is known here.

    Not under a compiler, functorch (nor for what escaped from it), autocast or forward-mode differentiation, whose
    tangent of W would cling to B; for tensor subclasses or more than one batch dimension; on devices with a linear map
    of their own; nor where somebody else (activation checkpointing, offloading) holds the saved tensors.
    """
    return (
        type(x) is _Tensor
        and x.dim() == 2
        and (x.is_cpu or x.is_cuda)
        and type(weight) in _PLAIN
        and not _is_compiling()
        and not _is_transformed()
        and not is_functorch_wrapped_tensor(x)
        and forward_ad._current_level < 0
        and not _is_autocast()
        and _saved_tensors_hooks(True) is None
    )


def swap_saved_weight(graph: Any, rule: Rule, weight: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
    """Put Bᵀ, B = rule.feedback(W, state), where the graph of ``F.linear(x, W, b)`` keeps Wᵀ.

    Args:
        graph: ``grad_fn`` of the result; x has to require grad.
        rule: with the plain transport.
        weight: W.
        state: the rule's state at the forward pass.

    Raises, in the backward pass:
        DoubleBackwardError: with ``create_graph=True``.
        ChangedInPlaceError: W or the state was changed after the forward pass.
    """
    tensors = (weight, *state.values())
    versions = sum(map(_version, tensors))  # each only grows

    def unpack(_: None) -> torch.Tensor:
        if torch.is_grad_enabled():  # autograd would take B's graph for that of W
            refuse()
        if sum(map(_version, tensors)) != versions:
            raise ChangedInPlaceError(
                f"a weight of shape {tuple(weight.shape)}, or its feedback, was modified by an inplace operation "
                "between the forward pass and the backward pass that needs it; do the backward pass first"
            )
        return rule.feedback(weight, state).t()

    graph._raw_saved_mat2.register_hooks(_forget, unpack)
