"""Finds weights that errors travel through outside of the module that owns them, in the first training pass.

Feedback is put on modules. Code that reads a module's weight and multiplies by it, such as a head that writes
``F.linear(h, self.embedding.weight)``, passes them by and would stay on backpropagation without a word.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lawful.attachment.leaf import sends_no_error

_PRODUCTS = frozenset(
    "linear bilinear matmul mm bmm mv addmm addmv addbmm baddbmm einsum tensordot inner outer dot vdot chain_matmul "
    "multi_dot conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d scaled_dot_product_attention "
    "multi_head_attention_forward".split()
)
"""What sends an error to one operand through another. Sums and lookups do not."""

_OWN = tuple(str(Path(module.__file__ or "").parent) for module in (torch, sys.modules["lawful"]))


@dataclass
class StrayWatch:
    """A forward pre-hook of the whole model that looks at one pass and is inert once it has come to its end.

    Args:
        weights: dotted names of the parameters to watch: those that are fed back, and embeddings.
        owners: dotted names of the modules inside which they may be used.
        report: (name of the weight, function and place) of a stray product that an error came back to.
    """

    weights: frozenset[str]
    owners: frozenset[str]
    report: Callable[[str, str], None]
    is_done: bool = False
    _mode: _Uses | None = None

    def __call__(self, model: nn.Module, args: Any) -> None:
        """Watch the pass that begins."""
        if self.is_done or torch.compiler.is_compiling() or sends_no_error():
            return
        if torch._C._are_functorch_transforms_active():  # tensors have no lasting identity there
            return
        if self._mode is not None and self._mode.is_live():
            return  # the model calls itself
        watch = self.watch(model, sys._getframe(1))
        done = model.register_forward_hook(self._finish)  # not where the pass fails
        watch.callback(done.remove)
        end = model.register_forward_hook(lambda *_: watch.close(), always_call=True)
        watch.callback(end.remove)

    def watch(self, model: nn.Module, frame: FrameType | None = None) -> ExitStack:
        """Watch until the stack is closed, or ``frame`` has been left (an interrupt runs no hooks)."""
        parameters = model.named_parameters(remove_duplicate=False)
        names = {id(p): name for name, p in parameters if name in self.weights}
        watch, mode = ExitStack(), _Uses(names, self._report, frame)
        if "torch._dynamo" in sys.modules:  # it would compile the mode into the code
            watch.enter_context(torch.compiler.set_stance("force_eager"))
        for owner in map(model.get_submodule, self.owners):
            watch.callback(owner.register_forward_pre_hook(mode.enter).remove)
            watch.callback(owner.register_forward_hook(mode.leave, always_call=True).remove)
        watch.callback(setattr, self, "_mode", None)
        watch.enter_context(mode)
        self._mode = mode
        return watch

    def _finish(self, *_: Any) -> None:
        self.is_done = True

    def _report(self, name: str, where: str) -> None:
        self.is_done = False  # where it raises, the next pass is looked at again
        self.report(name, where)
        self.is_done = True

    def __getstate__(self) -> dict[str, Any]:
        """A copy made during a pass watches none."""
        return {**vars(self), "_mode": None}


class _Uses(TorchFunctionMode):
    """Watches products with weights, and with what is made of weights alone."""

    def __init__(self, names: dict[int, str], report: Callable[[str, str], None], frame: FrameType | None) -> None:
        super().__init__()
        self._names, self._report, self._frame = names, report, frame
        self._alive: list[torch.Tensor] = []
        self._inside = 0

    def enter(self, *_: Any) -> None:
        self._inside += 1

    def leave(self, *_: Any) -> None:
        self._inside -= 1

    def is_live(self) -> bool:
        """Whether the watched call is still going on."""
        frame: FrameType | None = sys._getframe(1)
        while self._frame is not None and frame is not None and frame is not self._frame:
            frame = frame.f_back
        return frame is not None

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._inside or not self.is_live():
            return out
        operands = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        named = [name for x in operands if (name := self._names.get(id(x))) is not None]
        if not named:
            return out
        made = [y for y in tree_leaves(out) if isinstance(y, torch.Tensor) and y.requires_grad]
        if any(x.requires_grad and id(x) not in self._names for x in operands):
            function = func.__name__.strip("_")
            if function.removeprefix("r") in _PRODUCTS:
                arrived = partial(self._arrived, named[0], f"{function} {_place()}")
                for y in made:
                    y.register_hook(arrived)
        else:
            self._names.update({id(y): named[0] for y in made})
            self._alive += made  # or another tensor could get its id
        return out

    def _arrived(self, name: str, where: str, _: torch.Tensor) -> None:
        self._report(name, where)


def _place() -> str:
    """The line of the user's code that is running."""
    frames = traceback.extract_stack()
    last = next((f for f in reversed(frames) if not f.filename.startswith(_OWN)), frames[-1])
    return f"({last.filename}:{last.lineno})"


def stray(name: str, where: str) -> str:
    """What is wrong with a stray use of the weight ``name``, and what to do."""
    return (
        f"{name} is multiplied with by {where} outside of the module that owns it, so an error travels through the "
        "weight itself: call the module; give the product a module of its own that shares the parameter "
        f"(head = nn.Linear(…, bias=False); head.weight = that of {name.rpartition('.')[0]}); or detach what no error "
        "is meant to pass"
    )
