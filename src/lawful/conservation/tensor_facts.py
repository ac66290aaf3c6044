"""What autograd says of one tensor, asked past subclasses: the weights of registered modules refuse to be asked."""

from __future__ import annotations

from typing import Any

import torch


def severed(x: torch.Tensor) -> bool:
    """Whether nothing sends an error back through x: it has no graph, or is a view that was taken without one."""
    if not torch.is_grad_enabled():
        return False  # a custom autograd Function reads it, and has a backward pass of its own
    with torch._C.DisableTorchFunctionSubclass():
        return not x.requires_grad or (x._base is not None and x.grad_fn is None)


def node_of(x: torch.Tensor) -> tuple[Any, torch.Tensor | None]:
    """``x.grad_fn``, and what x views."""
    with torch._C.DisableTorchFunctionSubclass():
        return x.grad_fn, x._base


def output_of(x: torch.Tensor) -> int:
    """Which output of its node x is."""
    with torch._C.DisableTorchFunctionSubclass():
        return x.output_nr


def version_of(x: torch.Tensor) -> int:
    """Changes with every write in place; inference tensors keep no count."""
    with torch._C.DisableTorchFunctionSubclass():
        return 0 if x.is_inference() else x._version
