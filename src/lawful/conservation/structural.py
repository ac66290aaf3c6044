"""What reshapes, slices, joins and paddings do: the labels go the way of the elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves, tree_map

from lawful.conservation.trace import NONE, ZERO, Handler, Trace


def spelled(*what: Any) -> str:
    """Arguments in print, tensors by all of their numbers: what torch prints of long ones leaves some out."""

    def whole(x: Any) -> Any:
        return f"{tuple(x.shape)} {x.tolist()}" if isinstance(x, torch.Tensor) else x

    return " ".join(str(tree_map(whole, w)) for w in what)


def first(args: tuple[Any, ...], kwargs: dict) -> Any:
    """The operand of a function of one."""
    return args[0] if args else next(kwargs[name] for name in ("input", "self") if name in kwargs)


def structural(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """Reshapes, slices, joins: the labels go the same way as the elements."""
    present = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    found = {id(x): trace.labels(x) for x in present if x.is_floating_point()}
    if all(labels is None for labels in found.values()):
        made = [y for y in tree_leaves(out) if isinstance(y, torch.Tensor)]
        with trace.as_mixture(present[0] if len(present) == 1 else None, *made):
            for y in made:
                trace.label(y, None)
        return

    def swap(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or id(x) not in found:
            return x
        labels = found[id(x)]
        return torch.full(x.shape, NONE) if labels is None else labels

    moved = func(*tree_map(swap, args), **tree_map(swap, kwargs))
    moving = func.__name__ in _MOVING
    for i, (y, labels) in enumerate(zip(tree_leaves(out), tree_leaves(moved), strict=True)):
        trace.label(y, labels)
        if moving:
            trace.moved(labels, f"{i} of {func.__name__} {spelled(args[1:], kwargs)}")


def assigned(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """``x[index] = y``: these elements of x are now y's; what was there sends no error back."""
    target, index, value = args
    old, written = trace.labels(target), trace.labels(value)
    if old is None and written is None:
        trace.label(target, None)
        return
    labels = torch.full(target.shape, NONE) if old is None else old.clone()
    trace.moved(labels[index], f"overwritten at {spelled(index)}")
    labels[index] = trace.full(value, torch.Size()) if written is None else written
    trace.moved(labels[index], f"written at {spelled(index)}")
    trace.label(target, labels)


def unfold(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """``Tensor.unfold``, and ``F.unfold`` of images, which pads with zeros."""
    x = first(args, kwargs)
    labels = trace.labels(x)
    if func is not F.unfold or labels is None:
        structural(trace, func, args, kwargs, out)
        return
    settings = {**dict(zip(("kernel_size", "dilation", "padding", "stride"), args[1:], strict=False)), **kwargs}
    settings.pop("input", None)
    trace.moved(labels, f"unfold {settings}")
    trace.label(out, (F.unfold((labels - ZERO).double(), **settings) + ZERO).long())


def pad(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """Zero, reflect, replicate, circular padding keep a law; a constant other than zero ends it."""
    x = first(args, kwargs)
    labels = trace.labels(x)
    width = args[1] if len(args) > 1 else kwargs["pad"]
    mode = args[2] if len(args) > 2 else kwargs.get("mode", "constant")
    value = args[3] if len(args) > 3 else kwargs.get("value")
    if labels is None:
        trace.label(out, None)
        return
    trace.moved(labels, f"pad {width}")
    if mode == "constant":
        if value:
            trace.spoil(labels, f"padding with the constant {value}")
        trace.label(out, F.pad(labels.double(), width, value=NONE if value else ZERO).long())
    else:
        trace.label(out, F.pad(labels.double(), width, mode=mode).long())


_STRUCTURAL = (
    "view reshape flatten unflatten permute transpose movedim moveaxis swapaxes swapdims t unsqueeze squeeze expand "
    "expand_as chunk split tensor_split unbind __getitem__ select narrow cat concat concatenate stack hstack vstack "
    "flip roll repeat repeat_interleave tile pixel_shuffle pixel_unshuffle channel_shuffle index_select broadcast_to "
    "ravel split_with_sizes rot90 diagonal"
)
_MOVING = frozenset(
    "chunk split tensor_split unbind __getitem__ select narrow flip roll index_select split_with_sizes unfold rot90 "
    "diagonal".split()
)
"""Structural operations that change at which positions channels meet, if they are done to some and not to others."""
_PROPERTIES = "get T,get mT"

TABLE: Final[dict[str, Handler]] = {
    **dict.fromkeys([*_STRUCTURAL.split(), *_PROPERTIES.split(",")], structural),
    "setitem": assigned,
    "unfold": unfold,
    "pad": pad,
}
"""Function name -> what it does to channels."""
