"""Products by name: matmul, bmm, addmm, einsum, bilinear.

With one operand a parameter, or a torch view of one, a product is a layer: for any contraction out = Σ W x, with
letters as in einsum, W's elements at one index of the letters that W shares with out are a line of an output channel,
and those at one index of the letters that it shares with x are a line of an input channel. Of two activations a product
is a score or a mixture of positions.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from lawful.affine.maps import AffineMap
from lawful.affine.slices import Slices, vector
from lawful.conservation.labels import NONE, ZERO
from lawful.conservation.tensor_facts import severed
from lawful.conservation.trace import Trace

Call = Callable[..., Any]


@dataclass(frozen=True)
class View:
    """A parameter, or rows of it, reshaped and permuted.

    Args:
        name: dotted name of the parameter.
        shape: its axes in memory order.
        axes: for each axis of the view, the axis of ``shape``.
        window: the rows that are viewed; None for all.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    window: tuple[int, int] | None

    @property
    def elements(self) -> torch.Tensor:
        """The number, in memory order, of the parameter's element at each place of the view."""
        return torch.arange(prod(self.shape)).reshape(self.shape).permute(self.axes)


def view_of(trace: Trace, x: object) -> View | None:
    """Which parameter a tensor is or views, if it views whole rows of it and every element once."""
    if not isinstance(x, torch.Tensor) or severed(x):
        return None
    with torch._C.DisableTorchFunctionSubclass():  # a registered weight is a subclass that refuses to be asked
        base = x if id(x) in trace.names else x._base
        if base is None or id(base) not in trace.names or not base.is_contiguous() or not x.numel():
            return None
        sizes, strides, rows = x.shape, x.stride(), base.shape[0] if base.dim() else 1
        start, count, whole = x.storage_offset() - base.storage_offset(), x.numel(), base.numel()
    axes = sorted(range(len(sizes)), key=lambda a: (sizes[a] == 1, -strides[a]))
    shape = tuple(sizes[a] for a in axes)
    if any(sizes[a] > 1 and strides[a] != prod(shape[i + 1 :]) for i, a in enumerate(axes)):
        return None
    place, row = tuple(axes.index(a) for a in range(len(sizes))), whole // rows
    if count == whole:
        return View(trace.names[id(base)], shape, place, None)
    if start % row or count % row:
        return None
    return View(trace.names[id(base)], shape, place, (start // row, (start + count) // row))


# -- a parameter times activations ---------------------------------------------------------------------------------


def contract(
    trace: Trace,
    view: View,
    letters: str,
    inputs: Sequence[tuple[torch.Tensor, str]],
    out: torch.Tensor,
    into: str,
    bias: View | None = None,
) -> None:
    """``out[into] = Σ W[letters] · x[…] · …`` with W a parameter: reads every x, writes new channels of out."""
    size = dict(zip(letters, (view.shape[a] for a in view.axes), strict=True))
    written = _slices(view, letters, into)
    both = {c for x, names in inputs for c in names if c in letters and c in into}
    leading = all(set(_ordered(view, letters, other)[: len(both)]) == both for other in (into, *(n for _, n in inputs)))
    groups = prod(size[c] for c in both) if leading else prod(size.values())
    added = None if bias is None else vector(bias.name, written.count, bias.window)
    amap = AffineMap(written, _slices(view, letters, inputs[0][1]), added, groups)
    for x, names in inputs:
        lines = _slices(view, letters, names)
        labels = trace.labels(x)
        if labels is None:
            trace.read_lines(amap, None, 0, lines)
        else:
            kept = _ordered(view, letters, names)
            rest = [c for c in names if c not in kept]
            shape = [size.get(c, n) for c, n in zip(names, labels.shape, strict=True)]
            moved = labels.expand(shape).permute([names.index(c) for c in (*kept, *rest)])
            trace.read_lines(amap, moved.reshape(lines.count, -1), 0, lines)
    kept = _ordered(view, letters, into)
    ids = torch.from_numpy(trace.write(amap)).reshape([size[c] for c in kept])
    ids = ids.permute([kept.index(c) for c in into if c in kept])
    trace.label(out, ids.reshape([size.get(c, 1) for c in into]).expand(out.shape))


def _ordered(view: View, letters: str, other: str) -> list[str]:
    """The letters that W shares with another tensor, as W has them in memory."""
    return sorted((c for c in letters if c in other), key=lambda c: view.axes[letters.index(c)])


def _slices(view: View, letters: str, other: str) -> Slices:
    keep = tuple(sorted(view.axes[i] for i, c in enumerate(letters) if c in other))
    index = iter("fghij"[-len(keep) :] if len(keep) <= 5 else "j" * len(keep))
    entries = [next(index) if axis in keep else ":" for axis in range(len(view.shape))]
    while entries and entries[-1] == ":":
        entries.pop()
    return Slices(view.name, view.shape, keep, f"[{', '.join(entries)}]", view.window)


# -- activations times activations ---------------------------------------------------------------------------------


def score(trace: Trace, queries: torch.Tensor, keys: torch.Tensor) -> np.ndarray:
    """Scores s = q · k over the last axis of both: E_j(q) = E_j(k), whatever reads s."""
    q, k = (x.amax(-2, keepdim=True) for x in (queries, keys))
    for whole, top in ((queries, q), (keys, k)):
        if not bool((whole == top).all()):
            trace.spoil(queries, "a score whose channels change with the position")
            trace.spoil(keys, "a score whose channels change with the position")
            return np.zeros(0, dtype=np.int64)
    q, k = torch.broadcast_tensors(q, k)
    pairs, first = np.unique(torch.stack([q.reshape(-1), k.reshape(-1)]).numpy(), axis=1, return_index=True)
    heads = _heads(q).reshape(-1).numpy()[first]
    amounts = trace.balance.fresh(pairs.shape[1])
    for side in pairs:
        live = side >= 0
        key = heads[live] + (int(heads.max()) + 1) * trace.courses(side[live])
        trace.balance.read(side[live], amounts[live], 1, key)
    return amounts


def mix(trace: Trace, values: torch.Tensor, shape: torch.Size, *, averages: bool) -> torch.Tensor | None:
    """Mixture y = A v with A over positions (axis −2): E_j(v) = E_j(y); channels under one A mix alike.

    ``averages``: the rows of A sum to one.
    """
    top = values.amax(-2, keepdim=True)
    if not bool((values.masked_fill(values == ZERO, NONE) == top).logical_or(values == ZERO).all()):
        trace.spoil(values, "a product over channels that is no layer")
        return None
    mixed = trace.passes_by(top, _heads(top))
    if averages and not trace.padding.reaches(values):
        ids = np.unique(mixed.numpy())
        trace.carry(ids[ids >= 0], ids[ids >= 0])
    return mixed.expand(shape)


def _heads(labels: torch.Tensor) -> torch.Tensor:
    """For each element the index of its matrix, batch entries that share channels counted as one."""
    if labels.dim() <= 2:
        return torch.ones_like(labels)
    lead = torch.arange(labels[..., 0, 0].numel()).reshape(labels.shape[:-2])
    return (lead + 1)[..., None, None].expand(labels.shape)


def _pairwise(
    trace: Trace, left: torch.Tensor | None, right: torch.Tensor | None, shape: torch.Size, *, averages: bool
) -> torch.Tensor | None:
    """Labels of left @ right, (…, M, K) times (…, K, N), of which at least one is an activation.

    ``averages``: what is no activation sums to one over K.
    """
    if left is None and right is not None:
        return mix(trace, right, shape, averages=averages)
    if right is None and left is not None and bool((left == left[..., :1]).all()):
        mixed = mix(trace, left.mT, torch.Size([*shape[:-2], shape[-1], shape[-2]]), averages=averages)
        return None if mixed is None else mixed.mT
    if left is None or right is None or not _constant(left, -2) or not _constant(right, -1):
        for labels in (left, right):
            trace.spoil(labels, "a matrix product that is not followed")
        return None
    score(trace, left, right.mT)
    return None


def _constant(labels: torch.Tensor, axis: int) -> bool:
    return bool((labels == labels.narrow(axis, 0, 1)).all())


# -- functions -----------------------------------------------------------------------------------------------------


def einsum(trace: Trace, func: Call, args: tuple[Any, ...], kwargs: dict, out: torch.Tensor) -> None:
    """``torch.einsum`` of one or two operands."""
    operands = list(args[1]) if len(args) == 2 and isinstance(args[1], (list, tuple)) else list(args[1:])
    spec = _letters(args[0], operands) if isinstance(args[0], str) else None
    if spec is None or not _contraction(trace, operands, *spec, out):
        _unknown(trace, "einsum", operands, out)


def _letters(equation: str, operands: list[torch.Tensor]) -> tuple[list[str], str] | None:
    """An einsum's letters with the dots spelled out; None where a letter is repeated in one operand."""
    left, arrow, into = equation.replace(" ", "").partition("->")
    names = left.split(",")
    spare = [c for c in string.ascii_letters if c not in equation]
    dots = max(
        (x.dim() - len(n.replace("...", "")) for x, n in zip(operands, names, strict=True) if "..." in n), default=0
    )
    filled = []
    for x, n in zip(operands, names, strict=True):
        count = x.dim() - len(n.replace("...", ""))
        filled.append(n.replace("...", "".join(spare[dots - count : dots])))
    if not arrow:
        every = "".join(names).replace(".", "")
        into = "..." * ("..." in left) + "".join(sorted(c for c in set(every) if every.count(c) == 1))
    into = into.replace("...", "".join(spare[:dots]))
    if any(len(set(n)) < len(n) for n in (*filled, into)):
        return None
    return filled, into


def _contraction(trace: Trace, operands: list[Any], names: list[str], into: str, out: torch.Tensor) -> bool:
    """Follow a product with einsum's letters; False where it is not known."""
    if len(operands) == 1 and set(names[0]) == set(into):
        labels = trace.labels(operands[0])
        trace.label(out, None if labels is None else labels.permute([names[0].index(c) for c in into]))
        return True
    if len(operands) != 2:
        return False
    views = [view_of(trace, x) for x in operands]
    if sum(v is not None for v in views) == 1:
        w = 0 if views[0] is not None else 1
        view = views[w]
        assert view is not None
        x, letters = operands[1 - w], names[1 - w]
        contract(trace, view, names[w], [(x, letters)], out, into)
        return True
    if any(type(x) not in (torch.Tensor, torch.nn.Parameter) for x in operands) or any(v is not None for v in views):
        return False
    return _activations(trace, operands, names, into, out)


def _activations(trace: Trace, operands: list[Any], names: list[str], into: str, out: torch.Tensor) -> bool:
    labels = [trace.labels(x) for x in operands]
    if all(l is None for l in labels):
        trace.label(out, None)
        return True
    if any(c not in into and not (c in names[0] and c in names[1]) for n in names for c in n):
        return False
    size: dict[str, int] = {}
    for x, n in zip(operands, names, strict=True):
        for c, s in zip(n, x.shape, strict=True):
            size[c] = max(size.get(c, 1), s)
    summed = [c for c in names[0] if c in names[1] and c not in into]
    own = [
        [c for c in n if c not in other and _still(l, n, c)]
        for l, n, other in zip(labels, names, names[::-1], strict=True)
    ]
    batch = [c for c in into if c not in own[0] and c not in own[1]]
    lead = [size[c] for c in batch]
    left, right = (
        None if l is None else _arranged(l, n, [batch, middle, last], size)
        for l, n, middle, last in zip(labels, names, (own[0], summed), (summed, own[1]), strict=True)
    )
    m, n = prod(size[c] for c in own[0]), prod(size[c] for c in own[1])
    averages = any(
        l is None and id(x) in trace.mixtures and _sums_to_one(x, n, summed)
        for l, x, n in zip(labels, operands, names, strict=True)
    )
    found = _pairwise(trace, left, right, torch.Size([*lead, m, n]), averages=averages)
    if found is not None:
        order = [*batch, *own[0], *own[1]]
        found = found.reshape([size[c] for c in order]).permute([order.index(c) for c in into])
    trace.label(out, found)
    return True


def _sums_to_one(x: torch.Tensor, names: str, letters: list[str]) -> bool:
    axes = [names.index(c) for c in letters]
    x = x.detach()
    sums = x.sum(axes, dtype=torch.float64) if axes else x.double()
    return x.is_floating_point() and bool(((sums - 1).abs() <= 8 * torch.finfo(x.dtype).eps).all())


def _still(labels: torch.Tensor | None, names: str, letter: str) -> bool:
    """Whether the channel does not change along the axis of a letter."""
    return labels is None or _constant(labels, names.index(letter))


def _arranged(labels: torch.Tensor, names: str, axes: list[list[str]], size: dict[str, int]) -> torch.Tensor:
    """Labels with the axes (*batch, middle, last), absent letters expanded."""
    batch, middle, last = axes
    order = [*batch, *middle, *last]
    present = [c for c in order if c in names]
    moved = labels.permute([names.index(c) for c in present])
    for i, c in enumerate(order):
        if c not in names:
            moved = moved.unsqueeze(i)
    moved = moved.expand([size[c] for c in order])
    return moved.reshape([*(size[c] for c in batch), prod(size[c] for c in middle), prod(size[c] for c in last)])


def _matmul_letters(left: torch.Tensor, right: torch.Tensor) -> tuple[list[str], str]:
    lead = string.ascii_uppercase[: max(left.dim(), right.dim())]
    a = lead[len(lead) - max(left.dim() - 2, 0) :] + ("mk" if left.dim() > 1 else "k")
    b = lead[len(lead) - max(right.dim() - 2, 0) :] + ("kn" if right.dim() > 1 else "k")
    wide = max(left.dim(), right.dim()) - 2
    return [a, b], lead[len(lead) - max(wide, 0) :] + "m" * (left.dim() > 1) + "n" * (right.dim() > 1)


def matmul(trace: Trace, func: Call, args: tuple[Any, ...], kwargs: dict, out: torch.Tensor) -> None:
    """``@``, ``torch.matmul``, ``mm``, ``bmm``, ``mv``."""
    operands = [*args, *kwargs.values()][:2]
    operands = operands[::-1] if func.__name__ == "__rmatmul__" else operands
    if not _contraction(trace, operands, *_matmul_letters(*operands), out):
        _unknown(trace, func.__name__, operands, out)


def addmm(trace: Trace, func: Call, args: tuple[Any, ...], kwargs: dict, out: torch.Tensor) -> None:
    """``addmm`` and ``baddbmm``: a layer with a bias, or a score with a mask added."""
    added, *operands = args[:3]
    names, into = _matmul_letters(*operands)
    bias, weight = view_of(trace, added), view_of(trace, operands[1])
    plain = kwargs.get("beta", 1) == 1 and kwargs.get("alpha", 1) == 1
    if bias is not None and weight is not None and added.dim() == 1 and plain and view_of(trace, operands[0]) is None:
        contract(trace, weight, names[1], [(operands[0], names[0])], out, into, bias)
        return
    free = bias is None and trace.labels(added) is None
    if free and weight is None and _contraction(trace, operands, names, into, out) and trace.labels(out) is None:
        return
    _unknown(trace, func.__name__, [added, *operands], out)


def bilinear(trace: Trace, func: Call, args: tuple[Any, ...], kwargs: dict, out: torch.Tensor) -> None:
    """``F.bilinear``: out_o = Σ W_oij x_i y_j + b_o reads both inputs."""
    named = {**dict(zip(("input1", "input2", "weight", "bias"), args, strict=False)), **kwargs}
    x, y, bias = named["input1"], named["input2"], named.get("bias")
    view, added = view_of(trace, named["weight"]), view_of(trace, bias)
    if view is None or (bias is not None and added is None):
        _unknown(trace, "bilinear", [x, y], out)
        return
    lead = string.ascii_uppercase[: x.dim() - 1]
    contract(trace, view, "oij", [(x, f"{lead}i"), (y, f"{lead}j")], out, f"{lead}o", added)


def _unknown(trace: Trace, name: str, operands: Sequence[Any], out: torch.Tensor) -> None:
    for x in operands:
        trace.spoil(trace.labels(x), f"{name} is unknown")
    trace.note_unknown(name)
    trace.label(out, None)
