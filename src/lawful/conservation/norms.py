"""What norms do to channels: they do not see the scale (nor, if centred, the shift) of what they read together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from lawful.affine import maps
from lawful.conservation.labels import NONE
from lawful.conservation.norm_calls import NormCall, NormForm, form_of
from lawful.conservation.trace import Sight, Trace
from lawful.conservation.twin import twin_of


def dotted(trace: Trace, weight: Any, bias: Any) -> tuple[str | None, str | None, bool]:
    """Dotted names of weight and bias; False when the weight is computed, not a parameter."""
    weight_name, bias_name = trace.names.get(id(weight)), trace.names.get(id(bias))
    return weight_name, bias_name, weight_name is not None and (bias is None or bias_name is not None)


def _scaled(trace: Trace, a: dict, out: torch.Tensor, axis: int) -> None:
    """The affine part γ ⊙ x̂ + β writes new channels."""
    weight, bias, ok = dotted(trace, a.get("weight"), a.get("bias"))
    if not ok or weight is None:
        trace.label(out, None)
        return
    amap = maps.scale(weight, bias, a["weight"].numel())
    trace.label_axis(out, trace.write(amap), axis)


def _together(trace: Trace, what: str, call: NormCall, labels: torch.Tensor) -> None:
    """A norm takes the elements of each row together; E over the channels of a row vanishes as eps → 0."""
    over_positions = (what == "group norm" and labels.dim() > 2) or call.form.axes > 1  # if only one in this example
    rows = call.form.rows(labels).flatten(1)
    if bool((rows == rows[:1]).all()):
        rows, kind_of = rows[:1], np.zeros(len(rows), dtype=np.int64)
    else:
        rows, place = torch.unique(rows, dim=0, return_inverse=True)
        kind_of = place.numpy()
    for number, row in enumerate(rows):
        live = row[row >= 0]
        ids, counts = torch.unique(live, return_counts=True)
        if not len(ids):
            continue
        if bool((row == NONE).any()):
            trace.spoil(live, f"{what} over something that is no channel")
            continue
        kind = what
        one_position = not over_positions and bool((counts == 1).all())
        padded = trace.padding.divides(row) if one_position else trace.padding.reaches(row)
        if padded or bool((counts != counts[0]).any()):
            kind = "norm of padding"
        elif what != "RMS norm":
            kind = "layer norm" if one_position else "group norm"
        trace.spoil(live, f"{kind} mixes its channels")
        trace.norms.append(Sight(kind, ids.numpy(), call, np.nonzero(kind_of == number)[0]))


def batch_norm(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: torch.Tensor) -> None:
    """Batch and instance norm: where they use statistics of the input, E vanishes channel by channel as eps → 0."""
    form, a = form_of(func.__name__, args, kwargs)
    call = trace.norm_call(func.__name__, form)
    labels = trace.labels(a["input"])
    statistics = a.get("use_input_stats", True) if func.__name__ == "instance_norm" else a.get("training", False)
    if labels is not None:
        line = trace.lines(labels, 1, a["input"].shape[1], f"{func.__name__} over mixed channels")
        ids, rows = np.unique(line, return_index=True)
        ids, rows = ids[ids >= 0], rows[ids >= 0]
        if statistics and len(ids) == int((line >= 0).sum()):
            trace.shift_shows(labels)
            trace.blind(ids, call, rows)
        else:
            trace.spoil(torch.from_numpy(ids), "batch norm in eval mode subtracts a constant")
    _scaled(trace, a, out, 1)


def layer_norm(trace: Trace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, out: torch.Tensor) -> None:
    """Layer norm, RMS norm and group norm: the sum of E over what they take together vanishes as eps → 0."""
    form, a = form_of(func.__name__, args, kwargs)
    _normed(trace, trace.norm_call(func.__name__, form), a, out)


def _normed(trace: Trace, call: NormCall, a: dict, out: torch.Tensor) -> None:
    labels = trace.labels(a["input"])
    if labels is not None:
        _together(trace, _NAMES[call.form.kind], call, labels)
    if call.form.axes == 1:
        _scaled(trace, a, out, call.form.axis)
    else:
        trace.label(out, None)


_NAMES = {"layer_norm": "layer norm", "rms_norm": "RMS norm", "group_norm": "group norm"}


# -- norms written by hand -----------------------------------------------------------------------------------------


@torch.no_grad()
def computes(module: nn.Module, x: torch.Tensor, *, backward: bool = True) -> NormForm | None:
    """Which norm γ x̂ + β a module computes, judged by its numbers at random γ, β and x; None if it is none.

    At the γ and β that norms start with, and on an input that another norm has centred, different ones look alike. The
    output gives 1/√(v + ε) at every position, and so ε. A norm that computes in single precision on double inputs
    has that rounding for its ε: no sharper than that is its scale unseen. ``backward``: also that the errors which it
    sends back are those of γ x̂ + β.
    """
    weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
    if not x.is_floating_point() or x.dim() < 2 or weight is None or weight.numel() not in (x.shape[-1], x.shape[1]):
        return None
    axis = -1 if weight.numel() == x.shape[-1] else 1
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
    module = twin_of(module, lambda p: (0.5 + torch.rand(p.shape, generator=generator, dtype=torch.float64)).to(p))
    weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
    assert weight is not None
    out = module.forward(x)
    if not isinstance(out, torch.Tensor) or out.shape != x.shape:
        return None
    source, x, out = x, x.movedim(axis, -1), out.movedim(axis, -1)
    y = ((out if bias is None else out - bias) / weight).double()
    own, coarse = 64 * torch.finfo(x.dtype).eps, 64 * torch.finfo(torch.float32).eps
    for centred in (False, True):
        z = x.double()
        z = z - z.mean(-1, keepdim=True) if centred else z
        v = z.square().mean(-1, keepdim=True)
        eps = ((y * z).mean(-1, keepdim=True).div(v) ** -2 - v).median()
        eps = torch.where(eps.abs() <= own * v.max(), 0.0, eps).clamp(min=0)
        error = float((y - z / (v + eps).sqrt()).abs().max() / y.abs().max())
        if error <= max(own, coarse) and (not backward or _sends_back(module, source, centred, eps, axis)):
            sharp, kind = error <= own, "layer_norm" if centred else "rms_norm"
            return NormForm(kind, max(float(eps), 0.0 if sharp else error), axis, sharp=sharp)
    return None


@torch.enable_grad()
def _sends_back(module: nn.Module, source: torch.Tensor, centred: bool, eps: torch.Tensor, axis: int) -> bool:
    x, weight = source.detach().requires_grad_(), module._parameters["weight"]
    assert weight is not None
    signal = torch.randn_like(x)
    z = x.movedim(axis, -1).double()
    z = z - z.mean(-1, keepdim=True) if centred else z
    normed = z / (z.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    pair = (module.forward(x), normed.movedim(-1, axis).to(x))
    got, want = (torch.autograd.grad(y, x, signal, allow_unused=True, materialize_grads=True)[0] for y in pair)
    return bool((got - want).abs().max() <= 1e-3 * want.abs().max())


Handle = Callable[[Trace, Any, tuple, dict, Any], None]


def handler_of(module: nn.Module, args: tuple[Any, ...], kwargs: dict, *, backward: bool = True) -> Handle | None:
    """What a layer norm or an RMS norm of its author's own does to channels; None for any other module.

    Candidates are leaves with one vector (and a bias); which norm it is, if any, its numbers say.
    """
    own = module._parameters
    if module._modules or type(module).__module__.startswith(("torch.nn", "lawful.")) or len(args) + len(kwargs) != 1:
        return None
    if set(own) not in ({"weight"}, {"weight", "bias"}) or not all(p is None or p.dim() == 1 for p in own.values()):
        return None
    (x,) = (*args, *kwargs.values())
    form = computes(module, x, backward=backward) if isinstance(x, torch.Tensor) else None
    if form is None:
        return None

    def handle(trace: Trace, module: Any, args: tuple[Any, ...], kwargs: dict, out: Any) -> None:
        _normed(trace, trace.norm_call("", form), {"input": x, **own}, out)

    return handle
