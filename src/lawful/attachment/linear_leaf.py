"""The feedback form of linear layers, by the shortest way where they are small: torch's own graph, with B in W's place.

Autograd keeps W for one purpose, the error δW that the layer sends back. Hooks on that one saved tensor (torch's "Hooks
for saved tensors") drop it and make B when the backward pass asks for it. Everything else stays torch's, in C++: where
layers are small, the Python of an autograd Function costs more than their products. But a B that was made lives until
the node is done, while a Function lets go of it before ∂W is allocated: so not for a large B that has to be made; nor
where ``F.linear`` makes another graph than the one that is known here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from lawful.attachment import kernels
from lawful.attachment.guard import refuse
from lawful.attachment.leaf import FeedbackLeaf
from lawful.errors import ChangedInPlaceError
from lawful.rules.base import Rule

# On small layers, to look these names up anew would be a good part of the cost.
_PLAIN = (torch.Tensor, nn.Parameter)
_Tensor = torch.Tensor
_is_compiling = torch.compiler.is_dynamo_compiling  # an export has a tensor subclass for x
_is_transformed = torch._C._are_functorch_transforms_active
_is_autocast = torch._C._is_any_autocast_enabled
_is_grad_enabled = torch.is_grad_enabled
_forget: Callable[[torch.Tensor], None] = deque(maxlen=0).append  # a call into C that keeps nothing
_saved_tensors_hooks: Callable[[bool], Any] = torch._C._autograd._top_saved_tensors_default_hooks  # pyright: ignore[reportAttributeAccessIssue]


class LinearLeaf(FeedbackLeaf):
    """``nn.Linear``: δ_{i-1} = δ_i B."""

    bias: nn.Parameter | None

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's own name
        """``F.linear``, bitwise."""
        x, own, feedback = input, self._parameters, self.lawful_feedback["weight"]
        weight: Any = own.get("weight")
        if (  # written out, for on a small layer each call shows
            not feedback.is_light
            or type(x) is not _Tensor
            or type(weight) not in _PLAIN
            or "bias" not in own  # computed, as by a parametrization
            or x.dim() != 2
            or not (x.is_cpu or x.is_cuda)  # others have a linear map of their own
            or _is_compiling()
            or _is_transformed()
            or is_functorch_wrapped_tensor(x)  # escaped from a transform
            or forward_ad._current_level >= 0  # the tangent of W would cling to B
            or _is_autocast()
            or _saved_tensors_hooks(True) is not None  # checkpointing or offloading holds the saved tensors
        ):
            return kernels.linear(x, self.operand("weight"), self.bias)
        out = F.linear(x, weight, own["bias"])
        graph: Any = out.grad_fn
        if graph is not None and x.requires_grad:
            buffers: Any = self._buffers
            if feedback.stored is not None:
                B = buffers[feedback.stored]
                B_of = partial(_stored, weight, B, weight._version + B._version)
            else:
                state, version = {}, weight._version
                for key, name in feedback.buffers.items():
                    entry = state[key] = buffers[name]
                    version += entry._version
                B_of = partial(_made, feedback.rule, weight, state, version)
            graph._raw_saved_mat2.register_hooks(_forget, B_of)
        return out


# The hooks: Bᵀ for the backward pass. ``version`` is that of W and the rule's state at the forward pass, summed; each
# only grows.


def _stored(weight: torch.Tensor, B: torch.Tensor, version: int, _: None) -> torch.Tensor:
    if _is_grad_enabled():
        refuse()  # with create_graph=True autograd would take B's graph for that of W
    if weight._version + B._version != version:
        raise _changed(weight)
    return B.t()


def _made(rule: Rule, weight: torch.Tensor, state: dict[str, torch.Tensor], version: int, _: None) -> torch.Tensor:
    if _is_grad_enabled():
        refuse()
    now = weight._version
    for entry in state.values():
        now += entry._version
    if now != version:
        raise _changed(weight)
    return rule.feedback(weight, state).t()


def _changed(weight: torch.Tensor) -> ChangedInPlaceError:
    return ChangedInPlaceError(
        f"a weight of shape {tuple(weight.shape)}, or its feedback, was modified by an inplace operation "
        "between the forward pass and the backward pass that needs it; do the backward pass first"
    )
