"""What reshapes, slices, joins and paddings do: the labels go the way of the elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves, tree_map

from lawful.conservation.labels import NONE, ZERO, tells_apart
from lawful.conservation.trace import Handler, Trace


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
    each = func.__name__ == "__getitem__" and _tells_elements_apart(args[1], args[0])
    joins_zeros = func.__name__ in _JOINING and any(id(x) in trace.blank for x in present)
    for i, (y, labels) in enumerate(zip(tree_leaves(out), tree_leaves(moved), strict=True)):
        trace.label(y, labels)
        if joins_zeros and not tells_apart(labels, _axis_of(args, kwargs)):
            trace.padding.add(labels)
        if moving:
            trace.moved(labels, f"{i} of {func.__name__} {spelled(args[1:], kwargs)}", each=each)


def assigned(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """``x[index] = y``: these elements of x are now y's; what was there sends no error back."""
    target, index, value = args
    old, written = trace.labels(target), trace.labels(value)
    if old is None and written is None:
        trace.label(target, None)
        return
    labels = torch.full(target.shape, NONE) if old is None else old.clone()
    new = trace.full(value, torch.Size()) if written is None else written
    place, each = spelled(index), _tells_elements_apart(index, target)
    blank = bool((labels == ZERO).all())
    trace.moved(labels[index], f"overwritten at {place}", each=each)
    if not labels[index].numel():  # here it changes nothing; for other inputs it may
        if bool((new == ZERO).all()):
            trace.padding.add(labels)
        else:
            trace.spoil(labels, "something is written into it, though nothing of this example")
    labels[index] = new
    if blank and not bool((labels == ZERO).any()):
        trace.padding.add(labels[index])
    trace.moved(labels[index], f"written at {place}", each=each)
    trace.label(target, labels)


def _tells_elements_apart(index: Any, target: torch.Tensor) -> bool:
    """Whether an index picks its own positions of every channel: a mask of the target's shape, several lists."""
    picks = [i for i in tree_leaves(index) if isinstance(i, torch.Tensor)]
    return len(picks) > 1 or any(i.dtype is torch.bool and i.dim() == target.dim() for i in picks)


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
        if _pads_positions(labels, width):
            trace.padding.add(labels)
        if value:
            trace.spoil(labels, f"padding with the constant {value}")
        trace.label(out, F.pad(labels.double(), width, value=NONE if value else ZERO).long())
    else:
        trace.label(out, F.pad(labels.double(), width, mode=mode).long())


def _pads_positions(labels: torch.Tensor, width: Any) -> bool:
    """Not only channels; widths that are all zero may be of another length for other inputs."""
    axes = [labels.dim() - 1 - i // 2 for i in range(len(width)) if width[i] or not any(width)]
    return any(not tells_apart(labels, axis) for axis in axes)


def _axis_of(args: tuple[Any, ...], kwargs: dict) -> int:
    """The axis that ``cat`` joins along, or ``stack`` makes."""
    return args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))


_STRUCTURAL = (
    "view_as reshape_as "
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
_JOINING = frozenset("cat concat concatenate stack".split())
_PROPERTIES = "get T,get mT"

TABLE: Final[dict[str, Handler]] = {
    **dict.fromkeys([*_STRUCTURAL.split(), *_PROPERTIES.split(",")], structural),
    "setitem": assigned,
    "unfold": unfold,
    "pad": pad,
}
"""Function name -> what it does to channels."""
