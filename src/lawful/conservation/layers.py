"""What layers, norms and attention do to channels: functions by name, and leaf modules by type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from lawful.affine import maps
from lawful.affine.maps import AffineMap
from lawful.affine.slices import vector
from lawful.conservation.elementwise import addition
from lawful.conservation.trace import NONE, ZERO, Handler, Trace


def _named(func_args: tuple[Any, ...], kwargs: dict, names: str) -> dict[str, Any]:
    """Positional and keyword arguments under one set of names."""
    return {**dict(zip(names.split(), func_args, strict=False)), **kwargs}


def _names(trace: Trace, weight: Any, bias: Any) -> tuple[str | None, str | None, bool]:
    """Dotted names of weight and bias; False when the weight is computed, not a parameter."""
    weight_name, bias_name = trace.names.get(id(weight)), trace.names.get(id(bias))
    return weight_name, bias_name, weight_name is not None and (bias is None or bias_name is not None)


def _computed(trace: Trace, x: Any, weight: Any, out: torch.Tensor, what: str) -> None:
    for operand in (x, weight):
        if isinstance(operand, torch.Tensor):
            trace.spoil(trace.labels(operand), f"the weight of {what} is computed, not a parameter")
    trace.label(out, None)


def linear(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: torch.Tensor) -> None:
    """``F.linear``."""
    a = _named(args, kwargs, "input weight bias")
    weight, bias, ok = _names(trace, a["weight"], a.get("bias"))
    if not ok or weight is None:
        _computed(trace, a["input"], a["weight"], out, "a linear layer")
        return
    trace.affine(maps.linear(weight, tuple(a["weight"].shape), bias), a["input"], -1, out, -1)


def convolution(transposed: bool, dims: int) -> Handler:
    """``F.conv2d`` and its kind; channels on axis −dims−1."""
    order = "input weight bias stride padding output_padding groups dilation"
    order = order if transposed else "input weight bias stride padding dilation groups"
    make = maps.transposed_conv if transposed else maps.conv

    def handle(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: torch.Tensor) -> None:
        a = _named(args, kwargs, order)
        weight, bias, ok = _names(trace, a["weight"], a.get("bias"))
        if not ok or weight is None:
            _computed(trace, a["input"], a["weight"], out, "a convolution")
            return
        amap = make(weight, tuple(a["weight"].shape), bias, a.get("groups", 1))
        trace.affine(amap, a["input"], -dims - 1, out, -dims - 1)

    return handle


def embedding(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: torch.Tensor) -> None:
    """``F.embedding``."""
    a = _named(args, kwargs, "input weight")
    name = trace.names.get(id(a["weight"]))
    if name is None:
        trace.label(out, None)
        return
    trace.label_axis(out, trace.write(maps.embedding(name, tuple(a["weight"].shape))), -1)


# -- norms -------------------------------------------------------------------------------------------------------


def _scaled(trace: Trace, a: dict, out: torch.Tensor, axis: int) -> None:
    """The affine part γ ⊙ x̂ + β writes new channels."""
    weight, bias, ok = _names(trace, a.get("weight"), a.get("bias"))
    if not ok or weight is None:
        trace.label(out, None)
        return
    amap = maps.scale(weight, bias, a["weight"].numel())
    trace.label_axis(out, trace.write(amap), axis)


def batch_norm(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: torch.Tensor) -> None:
    """Batch norm: in training mode E of its input vanishes channel by channel as eps → 0."""
    a = _named(args, kwargs, "input running_mean running_var weight bias training momentum eps")
    labels = trace.labels(a["input"])
    statistics = func.__name__ == "instance_norm" or a.get("training", False)
    if labels is not None:
        line = trace.lines(labels, 1, a["input"].shape[1], f"{func.__name__} over mixed channels")
        ids = np.unique(line[line >= 0])
        if statistics and len(ids) == int((line >= 0).sum()):
            trace.blind("batch norm", ids, a["input"], 1)
        else:
            trace.spoil(torch.from_numpy(ids), "batch norm in eval mode subtracts a constant")
    _scaled(trace, a, out, 1)


def layer_norm(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: torch.Tensor) -> None:
    """Layer norm and RMS norm: the sum of E over the channels vanishes as eps → 0."""
    centred = func.__name__ == "layer_norm"
    a = _named(
        args, kwargs, "input normalized_shape weight bias eps" if centred else "input normalized_shape weight eps"
    )
    labels, what = trace.labels(a["input"]), "layer norm" if centred else "RMS norm"
    if labels is not None:
        if len(tuple(a["normalized_shape"])) == 1:
            trace.blind(what, trace.lines(labels, -1, labels.shape[-1], f"{what} over positions"), a["input"], -1)
        trace.spoil(labels, f"{what} mixes its channels")
    if len(tuple(a["normalized_shape"])) == 1:
        _scaled(trace, a, out, -1)
    else:
        trace.label(out, None)


def group_norm(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: torch.Tensor) -> None:
    """Group norm."""
    a = _named(args, kwargs, "input num_groups weight bias eps")
    trace.spoil(trace.labels(a["input"]), "group norm mixes its channels")
    _scaled(trace, a, out, 1)


# -- attention ---------------------------------------------------------------------------------------------------


def _mix(trace: Trace, values: torch.Tensor, out: torch.Tensor, *, averages: bool) -> torch.Tensor | None:
    """Mixture y = A v with A over positions (axis −2): E_j(v) = E_j(y); channels under one A mix alike.

    ``averages``: the rows of A sum to one.
    """
    top = values.amax(-2, keepdim=True)
    if not bool((values.masked_fill(values == ZERO, NONE) == top).logical_or(values == ZERO).all()):
        trace.spoil(values, "a product over channels that is no layer")
        return None
    mixed = trace.passes_by(top, _heads(top))
    if averages and not bool((values == ZERO).any()):
        ids = np.unique(mixed.numpy())
        trace.carry(ids[ids >= 0], ids[ids >= 0])
    return mixed.expand(out.shape)


def _heads(labels: torch.Tensor) -> torch.Tensor:
    """For each element the index of its matrix, batch entries that share channels counted as one."""
    if labels.dim() <= 2:
        return torch.ones_like(labels)
    lead = torch.arange(labels[..., 0, 0].numel()).reshape(labels.shape[:-2])
    return (lead + 1)[..., None, None].expand(labels.shape)


def _score(trace: Trace, queries: torch.Tensor, keys: torch.Tensor) -> np.ndarray:
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
        trace.balance.read(side[live], amounts[live], 1, heads[live])
    return amounts


def attention(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: torch.Tensor) -> None:
    """``F.scaled_dot_product_attention``."""
    a = _named(args, kwargs, "query key value attn_mask dropout_p is_causal")
    query, key, value = (trace.labels(a[name]) for name in ("query", "key", "value"))
    if kwargs.get("enable_gqa"):
        times = a["query"].shape[-3] // a["key"].shape[-3]
        key, value = (None if x is None else x.repeat_interleave(times, -3) for x in (key, value))
    attend(trace, query, key, value, out, averages=not a.get("dropout_p"))


def attend(
    trace: Trace,
    query: torch.Tensor | None,
    key: torch.Tensor | None,
    value: torch.Tensor | None,
    out: torch.Tensor,
    *,
    averages: bool,
) -> None:
    """softmax(q kᵀ) v on labels; ``averages`` where no dropout falls on the softmax."""
    if query is not None and key is not None:
        amounts, ids = _score(trace, query, key), np.unique(key[key >= 0].numpy())
        if not np.isin(ids, query.numpy()).any():  # the softmax sees no shift of the keys alone
            trace.norms.append(("keys", ids))
            trace.score_amounts.update(amounts.tolist())
    else:
        for labels in (query, key):
            trace.spoil(labels, "a score with something that is no channel")
    trace.label(out, None if value is None else _mix(trace, value, out, averages=averages))


def matmul(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: torch.Tensor) -> None:
    """A product with a parameter is a layer; of two activations a score or a mixture; of a constant a mixture."""
    named = _named(args, kwargs, "left right")
    left: Any = named["left"]
    right: Any = named.get("right", named.get("other", named.get("mat2")))
    name = trace.names.get(id(right))
    if name is not None and right.dim() == 2:
        trace.affine(maps.transposed_linear(name, tuple(right.shape)), left, -1, out, -1)
        return
    a, b = trace.labels(left), trace.labels(right)
    scored = a is not None and b is not None and bool((a[..., :1, :] == a).all()) and bool((b[..., :1] == b).all())
    if a is None and b is not None and right.dim() >= 2 and left.dim() >= 2:
        rows = left.detach().sum(-1)
        trace.label(out, _mix(trace, b, out, averages=torch.allclose(rows, torch.ones_like(rows), atol=1e-4)))
        return
    if scored and a is not None and b is not None and left.dim() >= 2 and right.dim() >= 2:
        _score(trace, a, b.mT)
    else:
        for labels in (a, b):
            trace.spoil(labels, "a matrix product that is not followed")
    trace.label(out, None)


def multi_head(trace: Trace, module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """``nn.MultiheadAttention``: packed or separate projections, heads, output projection."""
    a = _named(args, kwargs, "query key value")
    names = {key: trace.names[id(p)] for key, p in module.named_parameters()}
    if module.bias_k is not None or module.add_zero_attn:
        for x in (a["query"], a["key"], a["value"]):
            trace.spoil(trace.labels(x), "attention with added keys")
        trace.label(out[0], None)
        return
    size, heads = module.embed_dim, module.num_heads
    projected: list[torch.Tensor] = []
    for i, what in enumerate(("query", "key", "value")):
        bias = names.get("in_proj_bias")
        window = (i * size, (i + 1) * size)
        if "in_proj_weight" in names:
            amap = maps.linear(names["in_proj_weight"], (3 * size, size), bias, window, what)
        else:
            weight = f"{what[0]}_proj_weight"
            shape = tuple(getattr(module, weight).shape)
            amap = maps.linear(names[weight], shape, None)
            if bias is not None:
                amap = AffineMap(amap.out, amap.into, vector(bias, size, window, what))
        labels = trace.labels(a[what])
        trace.read_lines(amap, labels, -1)
        projected.append(torch.from_numpy(trace.write(amap)).reshape(heads, 1, size // heads))
    mixed = torch.empty(heads, 1, size // heads)
    averages = not (module.dropout and module.training)
    attend(trace, projected[0], projected[1], projected[2], mixed, averages=averages)
    joined = trace.labels(mixed)
    assert joined is not None
    last = maps.linear(names["out_proj.weight"], (size, size), names.get("out_proj.bias"))
    trace.read_lines(last, joined.movedim(0, 1).reshape(1, size), -1)
    trace.label_axis(out[0], trace.write(last), -1)
    if out[1] is not None:
        trace.label(out[1], None)


def multi_head_function(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """Never reached for modules, which are leaves; a call by hand is not followed."""
    for x in args[:3]:
        trace.spoil(trace.labels(x), "multi_head_attention_forward called by hand")
    trace.note_unknown("multi_head_attention_forward")
    trace.label(out[0], None)


def _relu_rnn(trace: Trace, module: Any, x: Any, out: Any) -> None:
    names = {key: trace.names[id(p)] for key, p in module.named_parameters()}
    labels, last = trace.labels(x), []
    for layer in range(module.num_layers):
        written = []
        maps_of = []
        for kind in ("ih", "hh"):
            weight = f"weight_{kind}_l{layer}"
            amap = maps.linear(names[weight], tuple(getattr(module, weight).shape), names.get(f"bias_{kind}_l{layer}"))
            part = torch.empty(1, module.hidden_size)
            trace.label_axis(part, trace.write(amap), -1)
            written.append(part)
            maps_of.append(amap)
        total = torch.empty(1, module.hidden_size)
        addition(trace, torch.add, tuple(written), {}, total)
        summed = trace.labels(total)
        assert summed is not None
        hidden = trace.passes(summed, 1, None)
        trace.read_lines(maps_of[0], labels, -1)
        trace.read_lines(maps_of[1], hidden, -1)
        last.append(hidden)
        labels = trace.passes(hidden, 1, None) if module.dropout and module.training else hidden
    states, final = out
    trace.label(states, last[-1].expand(states.shape))
    trace.label(final, torch.stack([h.expand(final.shape[1:]) for h in last]))


ModuleHandler = Callable[[Trace, Any, tuple, dict, Any], None]


# -- tables --------------------------------------------------------------------------------------------------------


def _module(make: Callable[..., AffineMap], axis: int) -> Callable[[Trace, Any, tuple, dict, Any], None]:
    def handle(trace: Trace, module: Any, args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
        weight, bias, ok = _names(trace, module.weight, module._parameters.get("bias"))
        x = args[0] if args else kwargs["input"]
        if not ok or weight is None:
            _computed(trace, x, None, out, type(module).__name__)
            return
        amap = make(weight, tuple(module.weight.shape), bias, *((module.groups,) if axis < -1 else ()))
        trace.affine(amap, x, axis, out, axis)

    return handle


def recurrent(trace: Trace, module: Any, args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """``nn.RNN`` with ReLU from h_0 = 0, all time steps as one; other fused recurrent layers are not followed."""
    a = _named(args, kwargs, "input hx")
    started = a.get("hx") is not None
    followed = isinstance(module, nn.RNN) and module.nonlinearity == "relu" and not module.bidirectional
    if followed and not started:
        _relu_rnn(trace, module, a["input"], out)
        return
    trace.spoil(trace.labels(a["input"]), f"{type(module).__name__} is not followed")
    trace.note_unknown(type(module).__name__)
    for y in tree_leaves(out):
        trace.label(y, None)


MODULES: Final[dict[type[nn.Module], ModuleHandler]] = {
    nn.Linear: _module(maps.linear, -1),
    nn.Conv1d: _module(maps.conv, -2),
    nn.Conv2d: _module(maps.conv, -3),
    nn.Conv3d: _module(maps.conv, -4),
    nn.ConvTranspose1d: _module(maps.transposed_conv, -2),
    nn.ConvTranspose2d: _module(maps.transposed_conv, -3),
    nn.ConvTranspose3d: _module(maps.transposed_conv, -4),
    nn.MultiheadAttention: multi_head,
    nn.RNNBase: recurrent,
}
"""Leaf modules whose inside is not looked at, so that attached subclasses of them are followed as well."""


def verified(cls: type[nn.Module], handler: ModuleHandler) -> ModuleHandler:
    """``handler`` for a module with code of its own, if its output is that of ``cls``; otherwise it is unknown."""

    def handle(trace: Trace, module: Any, args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
        with torch.no_grad():
            alike = _matches(cls, module, args, kwargs, out)
        if alike:
            handler(trace, module, args, kwargs, out)
            return
        for x in tree_leaves((args, kwargs)):
            trace.spoil(trace.labels(x), f"{type(module).__name__} is unknown")
        trace.note_unknown(type(module).__name__)
        for y in tree_leaves(out):
            if isinstance(y, torch.Tensor):
                trace.label(y, None)

    return handle


def _matches(cls: type[nn.Module], module: Any, args: tuple[Any, ...], kwargs: dict, out: Any) -> bool:
    x = args[0] if args else kwargs.get("input")
    if not isinstance(out, torch.Tensor) or not isinstance(x, torch.Tensor) or not x.is_floating_point():
        return False
    if cls is nn.Linear:
        if x.dim() < 1 or x.shape[-1] != module.weight.shape[-1]:
            return False
        expected = torch.nn.functional.linear(x, module.weight, module._parameters.get("bias"))
    else:
        expected = cls.forward(module, *args, **kwargs)
    return expected.shape == out.shape and torch.allclose(expected, out, rtol=1e-4, atol=1e-5)


HF_CONV1D: Final = _module(maps.transposed_linear, -1)

TABLE: Final[dict[str, Handler]] = {
    "linear": linear,
    **{f"conv{n}d": convolution(False, n) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": convolution(True, n) for n in (1, 2, 3)},
    "embedding": embedding,
    **dict.fromkeys(("batch_norm", "instance_norm"), batch_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), layer_norm),
    "group_norm": group_norm,
    "scaled_dot_product_attention": attention,
    **dict.fromkeys(("matmul", "bmm", "mm"), matmul),
    "multi_head_attention_forward": multi_head_function,
}
"""Function name -> what it does to channels."""
