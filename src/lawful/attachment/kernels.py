"""The affine operations that carry errors through B: linear maps and convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from lawful.attachment.kernel import Gradients, Kernel, Operand, Transport, cast_for_autocast, feedback_kernel


def _called(kernel: Kernel, options: Any, operand: Operand, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """The kernel, on tensors as autocast would hand them to the operation."""
    # to ask the tensor for its device costs more than all the rest of this function
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(x.device.type):
        weight, B = cast_for_autocast(operand.weight), cast_for_autocast(operand.B)
        bias = None if bias is None else cast_for_autocast(bias)
        return kernel(options, Operand(weight, (B,), transport=operand.transport), bias, cast_for_autocast(x))
    return kernel(options, operand, bias, x)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """(…, channels) as a matrix."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _linear_forward(
    weight: torch.Tensor, bias: torch.Tensor | None, inputs: tuple[torch.Tensor, ...], options: Any
) -> torch.Tensor:
    return F.linear(inputs[0], weight, bias)


def _linear_gradients(
    delta: torch.Tensor,
    weight: torch.Tensor,
    feedback: Callable[[], torch.Tensor],
    inputs: tuple[torch.Tensor, ...],
    options: Any,
    transport: Transport | None,
    needs: tuple[bool, ...],
) -> Gradients:
    x, flat = _rows(inputs[0]), _rows(delta)
    error = None
    if needs[2]:
        error = delta @ feedback() if transport is None else transport(delta, feedback())
    return flat.t() @ x if needs[0] else None, flat.sum(0) if needs[1] else None, error


_linear = feedback_kernel("FeedbackLinear", _linear_forward, _linear_gradients)


def linear(x: torch.Tensor, operand: Operand, bias: torch.Tensor | None) -> torch.Tensor:
    """``x @ weight.T + bias``, bitwise ``F.linear``; its input receives δB (or ``transport(δ, B)``).

    Shapes: x (…, in), W and B (out, in), bias (out,) or None; the result is (…, out).
    """
    return _called(_linear, (), operand, bias, x)


def _addmm_forward(
    weight: torch.Tensor, bias: torch.Tensor | None, inputs: tuple[torch.Tensor, ...], options: Any
) -> torch.Tensor:
    x = inputs[0]
    flat = x.reshape(-1, x.shape[-1])
    out = flat @ weight if bias is None else torch.addmm(bias, flat, weight)
    return out.reshape(*x.shape[:-1], weight.shape[-1])


def _transposed_adjoint(delta: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    return delta @ B.t()


def _addmm_gradients(
    delta: torch.Tensor,
    weight: torch.Tensor,
    feedback: Callable[[], torch.Tensor],
    inputs: tuple[torch.Tensor, ...],
    options: Any,
    transport: Transport | None,
    needs: tuple[bool, ...],
) -> Gradients:
    x, flat = _rows(inputs[0]), _rows(delta)
    error = None
    if needs[2]:
        error = delta @ feedback().t() if transport is None else transport(delta, feedback(), _transposed_adjoint)
    return x.t() @ flat if needs[0] else None, flat.sum(0) if needs[1] else None, error


_addmm = feedback_kernel("FeedbackTransposedLinear", _addmm_forward, _addmm_gradients)


def transposed_linear(x: torch.Tensor, operand: Operand, bias: torch.Tensor | None) -> torch.Tensor:
    """``x @ weight + bias``, bitwise ``torch.addmm`` on flattened inputs; its input receives δBᵀ.

    Shapes: x (…, in), W and B (in, out), bias (out,); the result is (…, out). Hugging Face's Conv1D.
    """
    return _called(_addmm, (), operand, bias, x)


class ConvOptions(NamedTuple):
    """What ``torch.convolution`` takes after its tensors."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


def _conv_forward(
    weight: torch.Tensor, bias: torch.Tensor | None, inputs: tuple[torch.Tensor, ...], options: ConvOptions
) -> torch.Tensor:
    return torch.convolution(inputs[0], weight, bias, *options)


def _conv_adjoint(x: torch.Tensor, options: ConvOptions) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def adjoint(delta: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.convolution_backward(delta, x, B, None, *options, (True, False, False))[0]

    return adjoint


def _conv_gradients(
    delta: torch.Tensor,
    weight: torch.Tensor,
    feedback: Callable[[], torch.Tensor],
    inputs: tuple[torch.Tensor, ...],
    options: ConvOptions,
    transport: Transport | None,
    needs: tuple[bool, ...],
) -> Gradients:
    # The weight's gradient never reads the weight, so that one call with B in its slot gives all three.
    out_channels = delta.shape[1]
    plain = needs[2] and transport is None
    mask = (plain, needs[0], needs[1])
    slot = feedback() if plain else weight
    error, *found = torch.ops.aten.convolution_backward(delta, inputs[0], slot, (out_channels,), *options, mask)
    if needs[2] and transport is not None:
        error = transport(delta, feedback(), _conv_adjoint(inputs[0], options))
    return *found, error


_conv = feedback_kernel("FeedbackConvolution", _conv_forward, _conv_gradients)


def convolution(x: torch.Tensor, operand: Operand, bias: torch.Tensor | None, options: ConvOptions) -> torch.Tensor:
    """``torch.convolution``, bitwise; its input receives the adjoint convolution of δ with B.

    Shapes: x (n, in, …), W and B (out, in/groups, …) or, transposed, (in, out/groups, …), bias (out,) or None.
    """
    return _called(_conv, options, operand, bias, x)
