"""Affine maps whose backward pass reads B where the weight stands; one autograd Function per affine map and per tracer.

Eager code takes the combined ``forward(ctx, …)``, the cheapest call; ``torch.compile`` needs ``setup_context`` and no
jvp; ``torch.func`` needs ``setup_context``, a generated vmap rule, and a jvp, which uses the true W because forward
mode sends no error back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import Function

from lawful.attachment.guard import final

Transport = Callable[..., torch.Tensor]
"""``Rule.transport`` when a rule overrides it; None stands for δB."""


def cast_for_autocast(*tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """The tensors as autocast would hand them to an affine op, cast where autograd can see it."""
    device = next(t for t in tensors if t is not None).device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def _linear_gradients(
    needs: tuple[bool, ...], transport: Transport | None
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor | None, ...]]:
    def compute(
        delta: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, B: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        error = weight_gradient = bias_gradient = None
        flat = delta.reshape(-1, delta.shape[-1])
        if needs[0]:
            error = delta @ B if transport is None else transport(delta, B)
        if needs[1]:
            weight_gradient = flat.t() @ x.reshape(-1, x.shape[-1])
        if needs[2]:
            bias_gradient = flat.sum(0)
        return error, weight_gradient, bias_gradient

    return compute


class _Linear(Function):
    """h = a Wᵀ + b; back: δB, δᵀa, Σδ."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, B: Any, transport: Transport | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight, B)
        ctx.transport = transport
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, delta: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        compute = _linear_gradients(ctx.needs_input_grad, ctx.transport)
        return *final(compute, delta, *ctx.saved_tensors), None, None


class _LinearCompiled(Function):
    @staticmethod
    def forward(x: Any, weight: Any, bias: Any, B: Any, transport: Transport | None) -> torch.Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, _, B, transport = inputs
        ctx.save_for_backward(x, weight, B)
        ctx.transport = transport

    @staticmethod
    def backward(ctx: Any, delta: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        # torch.compile itself refuses a second backward, so no guard is traced.
        compute = _linear_gradients(ctx.needs_input_grad, ctx.transport)
        return *compute(delta, *ctx.saved_tensors), None, None


class _LinearTransformed(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Any, weight: Any, bias: Any, B: Any, transport: Transport | None) -> torch.Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, _, B, transport = inputs
        ctx.save_for_backward(x, weight, B)
        ctx.save_for_forward(x, weight)
        ctx.transport = transport

    @staticmethod
    def backward(ctx: Any, delta: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        compute = _linear_gradients(ctx.needs_input_grad, ctx.transport)
        return *final(compute, delta, *ctx.saved_tensors), None, None

    @staticmethod
    def jvp(ctx: Any, x_t: Any, weight_t: Any, bias_t: Any, B_t: Any, _: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        terms = [
            F.linear(x_t, weight) if x_t is not None else None,
            F.linear(x, weight_t) if weight_t is not None else None,
            bias_t.expand(x.shape[:-1] + bias_t.shape) if bias_t is not None else None,
        ]
        return sum(term for term in terms if term is not None)


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    B: torch.Tensor,
    transport: Transport | None = None,
) -> torch.Tensor:
    """``x @ weight.T + bias``, bitwise ``F.linear``; its input receives δB (or ``transport(δ, B)``).

    Shapes: x (…, in), weight and B (out, in), bias (out,) or None; the result is (…, out).
    """
    x, weight, bias, B = cast_for_autocast(x, weight, bias, B)  # pyright: ignore[reportAssignmentType]
    if torch.compiler.is_compiling():
        return _LinearCompiled.apply(x, weight, bias, B, transport)  # pyright: ignore[reportReturnType]
    if torch._C._are_functorch_transforms_active():
        return _LinearTransformed.apply(x, weight, bias, B, transport)  # pyright: ignore[reportReturnType]
    return _Linear.apply(x, weight, bias, B, transport)  # pyright: ignore[reportReturnType]
