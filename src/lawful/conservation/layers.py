"""What layers, norms and attention do to channels: functions by name, and leaf modules by type."""

from __future__ import annotations

import string
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
from lawful.conservation.norm_calls import bound
from lawful.conservation.norms import batch_norm, dotted, layer_norm
from lawful.conservation.products import addmm, bilinear, contract, einsum, matmul, mix, score, view_of
from lawful.conservation.trace import Handler, Sight, Trace
from lawful.conservation.twin import twin_of


def _computed(trace: Trace, x: Any, weight: Any, out: torch.Tensor, what: str) -> None:
    for operand in (x, weight):
        if isinstance(operand, torch.Tensor):
            trace.spoil(trace.labels(operand), f"the weight of {what} is computed, not a parameter")
    trace.label(out, None)


def linear(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: torch.Tensor) -> None:
    """``F.linear``."""
    a = bound(args, kwargs, "input weight bias")
    weight, bias, ok = dotted(trace, a["weight"], a.get("bias"))
    if not ok or weight is None:
        view, added = view_of(trace, a["weight"]), view_of(trace, a.get("bias"))
        if view is None or (added is None) != (a.get("bias") is None):
            _computed(trace, a["input"], a["weight"], out, "a linear layer")
            return
        lead = string.ascii_uppercase[: a["input"].dim() - 1]
        contract(trace, view, "oi", [(a["input"], f"{lead}i")], out, f"{lead}o", added)
        return
    trace.affine(maps.linear(weight, tuple(a["weight"].shape), bias), a["input"], -1, out, -1)


def convolution(transposed: bool, dims: int) -> Handler:
    """``F.conv2d`` and its kind; channels on axis −dims−1."""
    order = "input weight bias stride padding output_padding groups dilation"
    order = order if transposed else "input weight bias stride padding dilation groups"
    make = maps.transposed_conv if transposed else maps.conv

    def handle(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: torch.Tensor) -> None:
        a = bound(args, kwargs, order)
        weight, bias, ok = dotted(trace, a["weight"], a.get("bias"))
        if not ok or weight is None:
            _computed(trace, a["input"], a["weight"], out, "a convolution")
            return
        amap = make(weight, tuple(a["weight"].shape), bias, a.get("groups", 1))
        trace.affine(amap, a["input"], -dims - 1, out, -dims - 1)

    return handle


def embedding(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: torch.Tensor) -> None:
    """``F.embedding``; the row of padding has no gradient, so it must be zero."""
    a = bound(args, kwargs, "input weight padding_idx max_norm norm_type scale_grad_by_freq")
    name = trace.names.get(id(a["weight"]))
    if name is None:
        trace.label(out, None)
        return
    if a.get("padding_idx") is not None and bool(a["weight"][a["padding_idx"]].any()):
        trace.loose[name] = f"the padding row of {name} is not zero, and has no gradient"
    if a.get("max_norm") is not None or a.get("scale_grad_by_freq"):
        trace.loose[name] = f"{name} is renormalised, or its gradient scaled by frequency"
    trace.label_axis(out, trace.write(maps.embedding(name, tuple(a["weight"].shape))), -1)


# -- attention ---------------------------------------------------------------------------------------------------


def attention(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: torch.Tensor) -> None:
    """``F.scaled_dot_product_attention``."""
    a = bound(args, kwargs, "query key value attn_mask dropout_p is_causal")
    query, key, value = (trace.labels(a[name]) for name in ("query", "key", "value"))
    if kwargs.get("enable_gqa"):
        times = a["query"].shape[-3] // a["key"].shape[-3]
        key, value = (None if x is None else x.repeat_interleave(times, -3) for x in (key, value))
    mask = a.get("attn_mask")
    hidden = _hidden(~mask if mask is not None and mask.dtype is torch.bool else mask)
    attend(trace, query, key, value, out, averages=not a.get("dropout_p") and _all_attend(hidden))


def _hidden(mask: torch.Tensor | None) -> torch.Tensor | None:
    """The keys that a mask hides: True, or −∞ to be added."""
    return mask if mask is None or mask.dtype is torch.bool else mask == -torch.inf


def _all_attend(hidden: torch.Tensor | None) -> bool:
    """Whether every query sees a key: torch's softmax over none is zero, and does not sum to one."""
    return hidden is None or not bool(hidden.all(-1).any())


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
        amounts, ids = score(trace, query, key), np.unique(key[key >= 0].numpy())
        if not np.isin(ids, query.numpy()).any():  # the softmax sees no shift of the keys alone
            trace.norms.append(Sight("keys", ids))
            trace.shift_shows(key)
            trace.score_amounts.update(amounts.tolist())
    else:
        for labels in (query, key):
            trace.spoil(labels, "a score with something that is no channel")
    trace.label(out, None if value is None else mix(trace, value, out.shape, averages=averages))


def multi_head(trace: Trace, module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """``nn.MultiheadAttention``: packed or separate projections, heads, output projection."""
    a = bound(args, kwargs, "query key value key_padding_mask need_weights attn_mask")
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
            amap = maps.linear(names[weight], shape, None, None, what)
            if bias is not None:
                amap = AffineMap(amap.out, amap.into, vector(bias, size, window, what))
        labels = trace.labels(a[what])
        trace.read_lines(amap, labels, -1)
        projected.append(torch.from_numpy(trace.write(amap)).reshape(heads, 1, size // heads))
    mixed = torch.empty(heads, 1, size // heads)
    averages = not (module.dropout and module.training) and _all_attend(_hidden_keys(module, a))
    attend(trace, projected[0], projected[1], projected[2], mixed, averages=averages)
    joined = trace.labels(mixed)
    assert joined is not None
    last = maps.linear(names["out_proj.weight"], (size, size), names.get("out_proj.bias"))
    trace.read_lines(last, joined.movedim(0, 1).reshape(1, size), -1)
    trace.label_axis(out[0], trace.write(last), -1)
    if out[1] is not None:
        trace.label(out[1], None)


def _hidden_keys(module: nn.MultiheadAttention, a: dict) -> torch.Tensor | None:
    """Which keys are hidden from which query, (…, queries, keys), by both of the module's masks."""
    pairs, keys = _hidden(a.get("attn_mask")), _hidden(a.get("key_padding_mask"))
    if keys is None:
        return pairs
    if pairs is not None and pairs.dim() == 3 and keys.dim() == 2:  # (examples · heads, queries, keys)
        keys = keys.repeat_interleave(module.num_heads, 0)
    return keys[..., None, :] if pairs is None else pairs | keys[..., None, :]


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
            weight, part = f"weight_{kind}_l{layer}", f"l{layer}" if module.num_layers > 1 else ""
            shape, bias = tuple(getattr(module, weight).shape), names.get(f"bias_{kind}_l{layer}")
            amap = maps.linear(names[weight], shape, bias, None, part)
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
        weight, bias, ok = dotted(trace, module.weight, module._parameters.get("bias"))
        x = args[0] if args else kwargs["input"]
        if not ok or weight is None:
            _computed(trace, x, None, out, type(module).__name__)
            return
        amap = make(weight, tuple(module.weight.shape), bias, *((module.groups,) if axis < -1 else ()))
        trace.affine(amap, x, axis, out, axis)

    return handle


def recurrent(trace: Trace, module: Any, args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
    """``nn.RNN`` with ReLU from h_0 = 0, all time steps as one; other fused recurrent layers are not followed."""
    a = bound(args, kwargs, "input hx")
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
    """``handler`` for a module with code of its own, if it computes what ``cls`` does, and sends back the same errors.

    Otherwise it is unknown. A trusting trace does not ask about the errors.
    """

    def handle(trace: Trace, module: Any, args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
        backward = not trace.trusting
        if _matches(cls, module, args, kwargs, out, backward=backward) and _is_one(
            cls, module, args, kwargs, backward=backward
        ):
            handler(trace, module, args, kwargs, out)
            return
        for x in tree_leaves((args, kwargs)):
            trace.spoil(trace.labels(x), f"{type(module).__name__} is unknown")
        trace.note_unknown(type(module).__name__)
        for y in tree_leaves(out):
            if isinstance(y, torch.Tensor):
                trace.label(y, None)

    return handle


def _is_one(cls: type[nn.Module], module: Any, args: tuple[Any, ...], kwargs: dict, *, backward: bool) -> bool:
    """:func:`_matches` at random parameters and small and large inputs: at special ones many modules look alike."""
    generator = torch.Generator().manual_seed(0)

    def random(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    x = args[0] if args else kwargs["input"]
    for scale in (1.0, 1e3):
        twin: Any = twin_of(module, random)
        z = (scale * random(x)).requires_grad_()
        new, named = ((z, *args[1:]), kwargs) if args else ((), kwargs | {"input": z})
        if not _matches(cls, twin, new, named, twin.forward(*new, **named), backward=backward):
            return False
    return True


def _matches(
    cls: type[nn.Module], module: Any, args: tuple[Any, ...], kwargs: dict, out: Any, *, backward: bool
) -> bool:
    x = args[0] if args else kwargs.get("input")
    if not isinstance(out, torch.Tensor) or not isinstance(x, torch.Tensor) or not x.is_floating_point():
        return False
    if cls is nn.Linear:
        if x.dim() < 1 or x.shape[-1] != module.weight.shape[-1]:
            return False
        expected = torch.nn.functional.linear(x, module.weight, module._parameters.get("bias"))
    else:
        expected = cls.forward(module, *args, **kwargs)
    if expected.shape != out.shape or not _close(out, expected):
        return False
    return not backward or _same_errors(expected, out, [x, *module.parameters()])


def _close(got: torch.Tensor, want: torch.Tensor) -> bool:
    return not want.numel() or bool((got - want).abs().max() <= 1e-4 * want.abs().max())


def _same_errors(expected: torch.Tensor, out: torch.Tensor, inputs: list[torch.Tensor]) -> bool:
    """Whether two tensors send the same errors to the inputs that they come from."""
    if not (expected.requires_grad and out.requires_grad):
        return expected.requires_grad == out.requires_grad
    signal, inputs = torch.randn_like(out), [x for x in inputs if x.requires_grad]
    got, want = (
        torch.autograd.grad(y, inputs, signal, retain_graph=True, allow_unused=True, materialize_grads=True)
        for y in (out, expected)
    )
    return all(map(_close, got, want))


HF_CONV1D: Final = _module(maps.transposed_linear, -1)

TABLE: Final[dict[str, Handler]] = {
    "linear": linear,
    **{f"conv{n}d": convolution(False, n) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": convolution(True, n) for n in (1, 2, 3)},
    "embedding": embedding,
    **dict.fromkeys(("batch_norm", "instance_norm"), batch_norm),
    **dict.fromkeys(("layer_norm", "rms_norm", "group_norm"), layer_norm),
    "scaled_dot_product_attention": attention,
    **dict.fromkeys(("matmul", "bmm", "mm", "mv"), matmul),
    **dict.fromkeys(("addmm", "baddbmm"), addmm),
    "einsum": einsum,
    "bilinear": bilinear,
    "multi_head_attention_forward": multi_head_function,
}
"""Function name -> what it does to channels."""
