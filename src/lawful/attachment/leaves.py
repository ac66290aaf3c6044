"""Feedback forms of the leaves that are one affine map: convolutions, and Hugging Face's linear layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lawful.attachment import kernels
from lawful.attachment.leaf import FeedbackLeaf


class TransposedLinearLeaf(FeedbackLeaf):
    """Hugging Face's ``Conv1D``, h = a W + b with W (in, out): δ_{i-1} = δ_i Bᵀ."""

    bias: nn.Parameter

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``torch.addmm`` on the flattened input, bitwise."""
        return kernels.transposed_linear(x, self.operand("weight"), self.bias)


class ConvLeaf(FeedbackLeaf):
    """``nn.Conv1d/2d/3d``: δ_{i-1} is the adjoint convolution of δ_i with B.

    Padding by reflection, replication or wrapping happens before the convolution, in autograd's hands.
    """

    bias: nn.Parameter | None

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Conv2d's own name
        """``F.convNd``, bitwise."""
        conv: Any = self
        operand = self.operand("weight")
        weight = operand.weight
        dims = weight.ndim - 2
        batched = input if input.ndim == weight.ndim else input.unsqueeze(0)
        if conv.padding_mode != "zeros":
            batched = F.pad(batched, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
            padding = (0,) * dims
        elif isinstance(conv.padding, str):
            batched, padding = _pad_by_name(batched, conv)
        else:
            padding = conv.padding
        options = kernels.ConvOptions(conv.stride, padding, conv.dilation, False, (0,) * dims, conv.groups)
        out = kernels.convolution(batched, operand, self.bias, options)
        return out if input.ndim == weight.ndim else out.squeeze(0)


def _pad_by_name(x: torch.Tensor, conv: Any) -> tuple[torch.Tensor, tuple[int, ...]]:
    """'valid' and 'same': what one symmetric padding cannot say is padded with zeros first, as torch itself does."""
    pads = conv._reversed_padding_repeated_twice  # before, after; the last dimension first, as F.pad wants it
    before, after = pads[::2], pads[1::2]
    extra = [side for b, a in zip(before, after, strict=True) for side in (0, a - b)]
    return (F.pad(x, extra) if any(extra) else x), tuple(before[::-1])


class TransposedConvLeaf(FeedbackLeaf):
    """``nn.ConvTranspose1d/2d/3d``: δ_{i-1} is the convolution of δ_i with B."""

    bias: nn.Parameter | None

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:  # noqa: A002
        """``F.conv_transposeNd``, bitwise."""
        conv: Any = self
        operand = self.operand("weight")
        weight = operand.weight
        extra = conv._output_padding(
            input, output_size, conv.stride, conv.padding, conv.kernel_size, weight.ndim - 2, conv.dilation
        )
        batched = input if input.ndim == weight.ndim else input.unsqueeze(0)
        options = kernels.ConvOptions(conv.stride, conv.padding, conv.dilation, True, tuple(extra), conv.groups)
        out = kernels.convolution(batched, operand, self.bias, options)
        return out if input.ndim == weight.ndim else out.squeeze(0)
