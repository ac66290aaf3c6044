"""Finds weights that errors travel through outside of the module that owns them, in the first forward pass.

Feedback is put on modules. Code that reads a module's weight and multiplies by it, such as a head that writes
``F.linear(h, self.embedding.weight)``, passes them by and would stay on backpropagation without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lawful.attachment.leaf import sends_no_error

_PRODUCTS = frozenset(
    "linear bilinear matmul mm bmm mv addmm addmv addbmm baddbmm einsum tensordot inner dot chain_matmul multi_dot "
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d scaled_dot_product_attention".split()
)
"""What sends an error to one operand through another. Sums and lookups do not."""


@dataclass
class StrayWatch:
    """A forward pre-hook of the whole model that looks at one pass and is inert from then on.

    Args:
        weights: dotted names of the parameters to watch: those that are fed back, and embeddings.
        owners: dotted names of the modules inside which they may be used.
        report: (name of the weight, name of the function) of a stray use.
    """

    weights: frozenset[str]
    owners: frozenset[str]
    report: Callable[[str, str], None]
    is_done: bool = False

    def __call__(self, model: nn.Module, args: Any) -> None:
        """Watch the pass that begins."""
        if self.is_done or torch.compiler.is_compiling() or sends_no_error():
            return
        if torch._C._are_functorch_transforms_active():  # tensors have no lasting identity there
            return
        self.is_done = True
        parameters = model.named_parameters(remove_duplicate=False)
        mode, handles = _Uses({id(p): name for name, p in parameters if name in self.weights}, self._report), []
        for owner in map(model.get_submodule, self.owners):
            handles.append(owner.register_forward_pre_hook(mode.enter))
            handles.append(owner.register_forward_hook(mode.leave, always_call=True))

        def end(*_: Any) -> None:
            mode.__exit__(None, None, None)
            for handle in handles:
                handle.remove()

        handles.append(model.register_forward_hook(end, always_call=True))
        mode.__enter__()

    def _report(self, name: str, function: str) -> None:
        self.is_done = False  # where it raises, the next pass is looked at again
        self.report(name, function)
        self.is_done = True


class _Uses(TorchFunctionMode):
    """Watches products with weights, and with what is made of weights alone."""

    def __init__(self, names: dict[int, str], report: Callable[[str, str], None]) -> None:
        super().__init__()
        self._names, self._report = names, report
        self._alive: list[torch.Tensor] = []
        self._inside = 0

    def enter(self, *_: Any) -> None:
        self._inside += 1

    def leave(self, *_: Any) -> None:
        self._inside -= 1

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._inside:
            return out
        operands = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        named = [name for x in operands if (name := self._names.get(id(x))) is not None]
        if named and any(x.requires_grad and id(x) not in self._names for x in operands):
            if func.__name__.strip("_").removeprefix("r") in _PRODUCTS:
                self._report(named[0], func.__name__.strip("_"))
        elif named:
            for y in tree_leaves(out):
                if isinstance(y, torch.Tensor) and y.requires_grad:
                    self._names[id(y)] = named[0]
                    self._alive.append(y)  # or another tensor could get its id
        return out


def stray(name: str, function: str) -> str:
    """What is wrong with a stray use of the weight ``name``, and what to do."""
    return (
        f"{name} is multiplied with by {function} outside of the module that owns it, so the error would travel "
        "through the weight itself: call the module, or give the product a module of its own that shares the parameter "
        f"(head = nn.Linear(…, bias=False); head.weight = that of {name.rpartition('.')[0]})"
    )
