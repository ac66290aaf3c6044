"""What elementwise operations, poolings and reductions do to channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from lawful.conservation import structural
from lawful.conservation.balance import NOT_LINEAR, Ids
from lawful.conservation.labels import NONE, ZERO
from lawful.conservation.products import View, view_of
from lawful.conservation.structural import first
from lawful.conservation.trace import Handler, Trace


def homogeneous(degree: float = 1, *, linear: bool = False) -> Handler:
    """Elementwise y = σ(x) with σ(cx) = c^k σ(x) for c > 0: ⟨δ_x, x⟩ = k⟨δ_y, y⟩."""

    def handle(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
        labels = trace.labels(first(args, kwargs))
        trace.label(out, None if labels is None else trace.passes(labels, degree, 0 if linear else None))

    return handle


def copied(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """The identity, as another tensor."""
    with trace.as_mixture(first(args, kwargs), out):
        homogeneous(linear=True)(trace, func, args, kwargs, out)
    _carried(trace, out)


def _carried(trace: Trace, out: torch.Tensor) -> None:
    labels = trace.labels(out)
    if labels is not None:
        ids = np.unique(labels.numpy())
        trace.carry(ids[ids >= 0], ids[ids >= 0])


def dropout(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """A mask times a constant; the identity in eval mode, and where nothing is dropped."""
    named = {"p": 0.5, "training": True, **dict(zip(("input", "p", "training"), args, strict=False)), **kwargs}
    handle = homogeneous() if named["training"] and named["p"] else copied
    handle(trace, func, args, kwargs, out)


def curved(what: str) -> Handler:
    """An activation that is not homogeneous: no law passes it."""

    def handle(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
        trace.spoil(trace.labels(first(args, kwargs)), f"{what} is not homogeneous")
        for y in tree_leaves(out):
            trace.label(y, None)

    return handle


def clamp(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """``clamp``, ``clip``, ``clamp_min`` and ``clamp_max``: a rectifier where the only bound is 0."""
    names = {"clamp_min": ("input", "min"), "clamp_max": ("input", "max")}.get(
        func.__name__.strip("_"), ("input", "min", "max")
    )
    bounds = {**dict(zip(names, args, strict=False)), **kwargs}
    given = [bounds[name] for name in ("min", "max") if bounds.get(name) is not None]
    zero = len(given) == 1 and not isinstance(given[0], torch.Tensor) and given[0] == 0
    (homogeneous() if zero else curved("clamp"))(trace, func, args, kwargs, out)


def gated(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """``F.glu``: a ⊙ sigmoid(a'), linear in its first half."""
    labels = trace.labels(first(args, kwargs))
    if labels is None:
        trace.label(out, None)
        return
    linear, gate = labels.chunk(2, args[1] if len(args) > 1 else kwargs.get("dim", -1))
    trace.spoil(gate, "the gate of a GLU is not homogeneous")
    trace.label(out, trace.passes(linear, 1, None))


def power(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """x^k for a number k; 2 ** x has its operands the other way round."""
    base, exponent = (*args, *kwargs.values())[:2]
    reflected = func.__name__ == "__rpow__"
    if isinstance(exponent, (int, float)) and isinstance(base, torch.Tensor) and not reflected:
        homogeneous(exponent)(trace, func, args, kwargs, out)
    else:
        curved("a power with a tensor")(trace, func, args, kwargs, out)


def same(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """Casts and copies: the same channels. Another operand only says which type."""
    for x in args[1:]:
        trace.labels(x)
    x = first(args, kwargs)
    with trace.as_mixture(x, out):
        trace.label(out, trace.labels(x))


def softmax(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """No law passes it; its numbers sum to one whatever the weights and the inputs are."""
    curved("softmax")(trace, func, args, kwargs, out)
    trace.mixtures.add(id(out))


def cut(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """No error returns through it: E gets nothing."""
    for y in tree_leaves(out):
        if isinstance(y, torch.Tensor):
            trace.label(y, None)


def zeros(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """Known to be zero, so it adds to nothing."""
    trace.label(out, torch.full(out.shape, ZERO))
    trace.blank.add(id(out))


def _clipped(args: tuple[Any, ...], kwargs: dict) -> bool:
    """Whether windows of an average pool may hang over the edge."""
    padding = args[3] if len(args) > 3 else kwargs.get("padding", 0)
    return padding not in (0, (0,), (0, 0), (0, 0, 0)) or bool(args[4] if len(args) > 4 else kwargs.get("ceil_mode"))


def pooling(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """Max, average, adaptive pooling and resizing: homogeneous, channel by channel (axis 1 of a batch)."""
    x = first(args, kwargs)
    labels = trace.labels(x)
    result = out[0] if isinstance(out, tuple) else out
    if labels is None:
        trace.label(result, None)
        return
    dims = next((int(c) for c in func.__name__ if c.isdigit()), x.dim() - 2)
    axis = x.dim() - dims - 1
    line = trace.lines(labels, axis, x.shape[axis], f"{func.__name__} mixes channels")
    shape = [1] * result.dim()
    shape[axis] = len(line)
    key = 0 if "avg" in func.__name__ else None
    trace.shift_shows(labels, always=key == 0 and "adaptive" not in func.__name__ and _clipped(args, kwargs))
    trace.label(result, trace.passes(torch.from_numpy(line), 1, key).reshape(shape).expand(result.shape))


def reduction(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """Sum, mean, max, min over positions: homogeneous where the channel does not change along the axes."""
    x = first(args, kwargs)
    labels = trace.labels(x)
    result = out if isinstance(out, torch.Tensor) else out[0]
    dims = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
    if labels is None:
        trace.label(result, None)
        return
    dims = tuple(range(x.dim())) if dims is None else (dims,) if isinstance(dims, int) else tuple(dims)
    top, bottom = labels.amax(dims, keepdim=True), labels.masked_fill(labels == ZERO, labels.max()).amin(dims, True)
    if not bool((top == bottom).all()):
        trace.spoil(labels, f"{func.__name__} over channels")
        trace.label(result, None)
        return
    key = 0 if func.__name__ in ("sum", "mean") else None
    trace.shift_shows(labels)
    trace.label(result, trace.passes(top, 1, key).reshape(result.shape))
    if func.__name__ == "mean" and not trace.padding.reaches(labels):
        _carried(trace, result)


def extreme(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """``max`` and ``min``: of two tensors, or over positions."""
    two = "other" in kwargs or (len(args) > 1 and isinstance(args[1], torch.Tensor))
    (addition if two else reduction)(trace, func, args, kwargs, out)


def _two(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict) -> list[Any]:
    """The operands of a sum or a product; without the condition, which torch.where has first, Tensor.where second."""
    if func.__name__ == "where":
        return [x for x in (*args, *kwargs.values()) if not (isinstance(x, torch.Tensor) and x.dtype is torch.bool)]
    return [*args[:2], *(kwargs[name] for name in ("input", "other") if name in kwargs)]


def _classes(labels: Sequence[torch.Tensor], shape: torch.Size) -> tuple[np.ndarray, torch.Tensor]:
    """The distinct tuples of labels over the elements, and which tuple each element has."""
    flat = torch.stack([l.expand(shape).reshape(-1) for l in labels], dim=1)
    code, base = torch.zeros(len(flat), dtype=torch.int64), int(flat.max()) + 3
    for column in flat.unbind(1):
        code = torch.unique(code * base + column + 2, return_inverse=True)[1]
    first = np.unique(code.numpy(), return_index=True)[1]
    return flat[torch.from_numpy(first)].numpy(), code.reshape(shape)


def _parameters(trace: Trace, operands: Sequence[Any]) -> dict[int, View]:
    """The operands that are whole parameters, or reshaped ones."""
    views = {i: view_of(trace, x) for i, x in enumerate(operands)}
    return {i: view for i, view in views.items() if view is not None and view.window is None}


def addition(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """Sum, difference, maximum, where: jointly homogeneous, so the operands' amounts add up to E of the result."""
    operands = _two(func, args, kwargs)
    if len(operands) != 2:  # torch.where(condition): positions
        cut(trace, func, args, kwargs, out)
        return
    linear = func.__name__.strip("_r") in ("add", "sub", "iadd", "isub")
    carries = func.__name__.strip("_r") in ("add", "iadd") and "alpha" not in kwargs
    parameters = _parameters(trace, operands)
    labels = [trace.full(x, out.shape) for x in operands]
    if all(bool((l < 0).all()) for l in labels):
        trace.label(out, None)
        return
    classes, place = _classes(labels, out.shape)
    ids = np.full(len(classes), NONE)
    ids[(classes == ZERO).all(1)] = ZERO
    live = (classes >= 0).any(1)
    ids[live] = trace.balance.fresh(int(live.sum()), activation=True)
    unknown = (classes == NONE).any(1)
    padded = trace.padding.of(classes)
    all_padded = (padded | (classes == ZERO)).all(1)
    entries: list[tuple[Ids, Ids, float]] = []
    for i, column in enumerate(classes.T):
        reads = (column >= 0) & live
        amounts = trace.balance.fresh(int(reads.sum()))
        trace.balance.read(column[reads], amounts, 1, trace.courses(column[reads]) if linear else NOT_LINEAR)
        trace.balance.link(amounts, ids[reads])
        trace.padding.inherit(column[reads & all_padded], ids[reads & all_padded])
        trace.uneven.update(column[padded[:, i] & ~all_padded].tolist())  # a shift of it is none of the sum
        if carries:
            everywhere = ~padded[reads, i]
            trace.carry(amounts[everywhere], ids[reads][everywhere])
        entries.append((np.nonzero(reads)[0], amounts, 1))
        if i in parameters:
            sourced = trace.source(parameters[i].name, parameters[i].elements, place, len(classes))
            at = np.nonzero((column == NONE) & live & (sourced >= 0))[0]
            entries.append((at, sourced[at], 1))
            known = np.zeros(len(classes), dtype=bool)
            known[at] = True
            others = np.delete(classes, i, axis=1)
            unknown &= ~(known & (others != NONE).all(1))
    entries.append((np.nonzero(live)[0], ids[live], -1))
    trace.spoil(
        torch.from_numpy(ids[unknown & live]) if unknown.any() else None, "an input that is no channel is added"
    )
    keep = live & ~unknown
    number = np.cumsum(keep) - 1
    entries = [(number[at[keep[at]]], var[keep[at]], c) for at, var, c in entries]
    trace.balance.equate(int(keep.sum()), entries)
    if (unknown & live).any():
        column_max = classes[unknown & live].max(1)
        trace.spoil(torch.from_numpy(column_max), "an input that is no channel is added")
    trace.label(out, torch.from_numpy(ids)[place])


def _is_one_number(trace: Trace, x: object, out: torch.Tensor) -> bool:
    """Whether x is the same for every example, position and channel: with all axes of ``out`` it may be of one each."""
    if not isinstance(x, torch.Tensor) or x.dim() == 0:
        return True
    return x.numel() == 1 and (x.dim() == 1 < out.dim() or trace.parameter_of(x) is not None)


def product(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """The product y = a ⊙ a': E(a) = E(y) = E(a'), whatever the other factor is; a parameter γ contributes γγ̇."""
    operands = _two(func, args, kwargs)
    labels = [
        trace.full(x, out.shape) if isinstance(x, torch.Tensor) else torch.full(out.shape, NONE) for x in operands
    ]
    parameters = _parameters(trace, operands)
    if all(bool((l < 0).all()) for l in labels):
        trace.label(out, None)
        return
    uniform = sum(not _is_one_number(trace, x, out) for x in operands) == 1
    classes, place = _classes(labels, out.shape)
    ids = np.full(len(classes), NONE)
    ids[(classes == ZERO).any(1)] = ZERO
    live = (classes >= 0).any(1) & (classes != ZERO).all(1)
    ids[live] = trace.balance.fresh(int(live.sum()), activation=True)
    for i, column in enumerate(classes.T):
        reads = (column >= 0) & live
        key = trace.courses(column[reads]) if uniform else NOT_LINEAR
        trace.balance.read(column[reads], ids[reads], 1, key)
        trace.padding.inherit(column[reads], ids[reads])
        if i in parameters:
            sourced = trace.source(parameters[i].name, parameters[i].elements, place, len(classes))
            at = np.nonzero(live & (sourced >= 0))[0]
            trace.balance.equate(len(at), [(np.arange(len(at)), ids[at], 1), (np.arange(len(at)), sourced[at], -1)])
    trace.label(out, torch.from_numpy(ids)[place])


def masked(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """masked_fill: a mask where the fill is 0, a constant written over the channel otherwise."""
    fill = args[2] if len(args) > 2 else kwargs["value"]
    if isinstance(fill, torch.Tensor) or fill != 0:
        curved(f"masked_fill with {fill}")(trace, func, args, kwargs, out)
    else:
        homogeneous()(trace, func, args, kwargs, out)


def quotient(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """A quotient a / c: linear in a; in the denominator the degree is −1."""
    top, bottom = first(args, kwargs), args[1] if len(args) > 1 else kwargs["other"]
    if kwargs.get("rounding_mode") is not None:
        curved("a rounded division")(trace, func, args, kwargs, out)
        return
    if func.__name__.startswith("__r"):
        top, bottom = bottom, top
    trace.spoil(trace.labels(bottom), "a division by it")
    labels = trace.labels(top)
    key = 0 if _is_one_number(trace, bottom, out) else None
    trace.label(out, None if labels is None else trace.passes(labels.expand(out.shape), 1, key))


_LINEAR = "neg negative"
_COPIED = "clone contiguous"
_HOMOGENEOUS = "relu leaky_relu rrelu abs absolute prelu tril triu"
_DROPOUT = "dropout dropout1d dropout2d dropout3d feature_dropout"
CURVED: Final = {
    "gelu": "GELU",
    "silu": "SiLU",
    "elu": "ELU",
    "selu": "SELU",
    "celu": "CELU",
    "mish": "Mish",
    "relu6": "ReLU6",
    "hardswish": "Hardswish",
    "hardsigmoid": "Hardsigmoid",
    "hardtanh": "Hardtanh",
    "logsigmoid": "LogSigmoid",
    "log_softmax": "log-softmax",
    "alpha_dropout": "alpha dropout",
    "feature_alpha_dropout": "alpha dropout",
    **{
        name: name
        for name in (
            "tanh sigmoid softplus exp log sin cos erf hardshrink log1p softshrink threshold logsumexp softsign "
            "tanhshrink rsqrt norm softmax"
        ).split()
    },
}
"""Functions that are not homogeneous, and how a reason calls them."""

_SAME = "to float double half bfloat16 type type_as cpu cuda identity checkpoint requires_grad as_tensor asarray"
_CUT = (
    "detach argmax argmin eq ne lt gt le ge sign isnan isinf arange full ones ones_like tensor randn rand randint "
    "empty linspace bool long int bernoulli multinomial one_hot eye full_like rand_like randn_like "
    "empty_like new_full new_ones new_empty new_tensor logical_not logical_and logical_or bitwise_not bitwise_and "
    "any all"
)
_POOLING = [
    f"{kind}{n}d"
    for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool")
    for n in (1, 2, 3)
]

TABLE: Final[dict[str, Handler]] = {
    **dict.fromkeys(_LINEAR.split(), homogeneous(linear=True)),
    **dict.fromkeys(_COPIED.split(), copied),
    **dict.fromkeys(_HOMOGENEOUS.split(), homogeneous()),
    **dict.fromkeys(_DROPOUT.split(), dropout),
    **{name: curved(what) for name, what in CURVED.items()},
    **dict.fromkeys(("clamp", "clip", "clamp_min", "clamp_max"), clamp),
    "glu": gated,
    "softmax": softmax,
    "square": homogeneous(2),
    "sqrt": homogeneous(0.5),
    "pow": power,
    **structural.TABLE,
    **dict.fromkeys(_SAME.split(), same),
    **dict.fromkeys(_CUT.split(), cut),
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), zeros),
    "masked_fill": masked,
    **dict.fromkeys([*_POOLING, *(f"{p}_with_indices" for p in _POOLING), "interpolate", "upsample"], pooling),
    **dict.fromkeys(("sum", "mean", "amax", "amin"), reduction),
    **dict.fromkeys(("max", "min"), extreme),
    **dict.fromkeys(("add", "sub", "subtract", "iadd", "isub", "maximum", "minimum", "where"), addition),
    **dict.fromkeys(("mul", "multiply", "imul"), product),
    **dict.fromkeys(("div", "divide", "truediv", "true_divide", "itruediv"), quotient),
}
"""Function name -> what it does to channels."""
