"""What the eps of norms adds to scale laws, as a run shows it: ε/(v + ε) Σ δ γ x̂ over what is normed together.

A norm y = γ x̂ + β, x̂ = (x − μ)/√(v + ε), sees the scale of x only by its ε: at (1 + t)x, x̂ moves by x̂ ε/(v + ε) · t. So
the error that it sends back has ⟨δ_x, x⟩ = ε/(v + ε) Σ δ γ x̂ over all that shares one v, exactly, whatever the errors δ
at y are. The same with μ = 0, as in RMS norm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

NORMS: Final = {
    "batch_norm": "input running_mean running_var weight bias training momentum eps",
    "instance_norm": "input running_mean running_var weight bias use_input_stats momentum eps",
    "layer_norm": "input normalized_shape weight bias eps",
    "rms_norm": "input normalized_shape weight eps",
    "group_norm": "input num_groups weight bias eps",
}
"""torch's norms, and their arguments in order."""


def bound(args: tuple[Any, ...], kwargs: Mapping[str, Any], names: str) -> dict[str, Any]:
    """Positional and keyword arguments under one set of names."""
    return {**dict(zip(names.split(), args, strict=False)), **kwargs}


@dataclass(frozen=True)
class NormForm:
    """How a norm takes elements together.

    Args:
        kind: the name of torch's function; of a norm of one's own "layer_norm" or "rms_norm".
        eps: its ε.
        axis: of β and γ; what a layer norm or RMS norm takes together is ``axes`` axes that end here.
        axes: see ``axis``.
        groups: of a group norm.
        sharp: False for one that computes in lower precision than its input has: ε/(v + ε) is not known to rounding.
    """

    kind: str
    eps: float
    axis: int = 1
    axes: int = 1
    groups: int = 1
    sharp: bool = True

    @property
    def centred(self) -> bool:
        """Whether μ is subtracted."""
        return self.kind != "rms_norm"

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, n, elements that share one v): a row is a channel of a batch norm, else what is taken together."""
        if self.kind == "batch_norm":
            return x.movedim(1, 0).reshape(x.shape[1], 1, -1)
        if self.kind == "instance_norm":
            return x.movedim(1, 0).reshape(x.shape[1], x.shape[0], -1)
        if self.kind == "group_norm":
            return x.reshape(x.shape[0] * self.groups, 1, -1)
        return x.movedim(self.axis, -1).flatten(-self.axes).flatten(0, -2).unsqueeze(1)

    @torch.no_grad()
    def share(self, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """ε/(v + ε) · γ x̂ in the shape of :meth:`rows`, y the output of the norm."""
        if bias is not None:
            shape = [1] * y.dim()
            shape[self.axis] = -1
            y = y - (bias if self.axes > 1 else bias.reshape(shape))
        rows = self.rows(x)
        rows = rows - rows.mean(-1, keepdim=True) if self.centred else rows
        return self.eps / (rows.square().mean(-1, keepdim=True) + self.eps) * self.rows(y)


def form_of(kind: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[NormForm, dict[str, Any]]:
    """The form of a call of one of torch's functions, and its arguments by name."""
    a = bound(args, kwargs, NORMS[kind])
    eps = a.get("eps", None if kind == "rms_norm" else 1e-5)
    eps = torch.finfo(a["input"].dtype).eps if eps is None else float(eps)
    if kind in ("layer_norm", "rms_norm"):
        return NormForm(kind, eps, -1, len(tuple(a["normalized_shape"]))), a
    return NormForm(kind, eps, groups=a.get("num_groups", 1)), a


@dataclass(frozen=True)
class NormCall:
    """One call of a norm in a run.

    Args:
        module: dotted name of the module whose code calls it.
        function: the name of torch's function; "" where the module itself is the norm.
        turn: how many such calls the module has made before.
        form: what is taken together.
    """

    module: str
    function: str
    turn: int
    form: NormForm

    def __str__(self) -> str:
        where = f"module {self.module!r}" if self.module else "the model itself"
        return f"{self.function} in {where}" if self.function else where


@dataclass(frozen=True)
class Share:
    """What a norm adds to the rate of a law, Σ coefficient · (its amount at ``rows``), at the components ``place``."""

    call: NormCall
    coefficient: float
    rows: torch.Tensor
    place: torch.Tensor


@contextmanager
def amounts_of(model: nn.Module, calls: Iterable[NormCall]) -> Iterator[Callable[[Any], dict[NormCall, torch.Tensor]]]:
    """Watch the norms of a run, forward and backward.

    Yields:
        To be called with the outputs before the backward pass: call -> ⟨δ_x, x⟩ of each row, zero until its error
        comes. A call is missing whose output never had a gradient: inside an autograd Function that does more than it.
    """
    watch = _Watch(calls)
    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(partial(watch.enter, name)).remove)
            stack.callback(module.register_forward_hook(watch.leave, with_kwargs=True, prepend=True).remove)
        with watch:
            yield watch.finish


class _Watch(TorchFunctionMode):
    def __init__(self, calls: Iterable[NormCall]) -> None:
        super().__init__()
        self._calls = {(call.module, call.function, call.turn): call for call in calls}
        self._turns: Counter[tuple[str, str]] = Counter()
        self._path: list[str] = []
        self._hidden: dict[int, tuple[NormCall, torch.Tensor, int, torch.Tensor]] = {}
        self._amounts: dict[NormCall, torch.Tensor] = {}

    def enter(self, name: str, module: nn.Module, args: Any) -> None:
        self._path.append(name)
        self._meet(args)

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict, output: Any) -> None:
        call = self._call("")
        self._path.pop()
        if call is not None:
            (x,) = (*args, *kwargs.values())
            self._normed(call, x, output, module._parameters.get("bias"))

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self._hidden:
            self._meet((args, kwargs))
        out = func(*args, **kwargs)
        call = self._call(func.__name__) if func.__name__ in NORMS else None
        if call is not None:
            a = form_of(func.__name__, args, kwargs)[1]
            self._normed(call, a["input"], out, a.get("bias"))
        return out

    def finish(self, outputs: Any) -> dict[NormCall, torch.Tensor]:
        self._meet(outputs)
        return self._amounts

    def _call(self, function: str) -> NormCall | None:
        where = self._path[-1] if self._path else "", function
        turn = self._turns[where]
        self._turns[where] += 1
        return self._calls.get((*where, turn))

    def _normed(self, call: NormCall, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None) -> None:
        share = call.form.share(x, y, bias)
        if y.requires_grad:
            self._hear(call, share, y, y.shape)
        else:
            self._hidden[y.untyped_storage().data_ptr()] = call, share, y._version, y

    def _hear(self, call: NormCall, share: torch.Tensor, y: torch.Tensor, shape: torch.Size) -> None:
        self._amounts[call] = share.new_zeros(len(share))
        y.register_hook(partial(self._book, call, share, shape))

    def _book(self, call: NormCall, share: torch.Tensor, shape: torch.Size, error: torch.Tensor) -> None:
        self._amounts[call] = (call.form.rows(error.detach().reshape(shape)) * share).sum((1, 2))

    def _meet(self, operands: Any) -> None:
        """The output of a norm inside an autograd Function, when it comes out of it, as it is or reshaped."""
        for x in tree_leaves(operands):
            if not (self._hidden and isinstance(x, torch.Tensor) and x.requires_grad):
                continue
            at = x.untyped_storage().data_ptr()
            if at not in self._hidden:
                continue
            call, share, version, y = self._hidden[at]
            if x.numel() == y.numel() and x.is_contiguous() and y.is_contiguous() and x._version == version:
                del self._hidden[at]
                self._hear(call, share, x, y.shape)
