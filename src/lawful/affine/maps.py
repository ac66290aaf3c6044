"""What each affine operation is: output channel j owns W's out-line j and bias b[j], input channel j its in-line j."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import nn

from lawful.affine.slices import Slices, vector


@dataclass(frozen=True)
class AffineMap:
    """Where an affine map keeps its channels.

    Args:
        out: the weight's lines by output channel, or None for a map without weight.
        into: the weight's lines by input channel; None for embeddings and norms, which read no channels.
        bias: the bias by output channel.
        groups: channels of different groups share no elements (grouped convolution).
    """

    out: Slices | None
    into: Slices | None
    bias: Slices | None = None
    groups: int = 1

    @property
    def slices(self) -> tuple[Slices, ...]:
        """Every set of out-lines: the weight's and the bias's."""
        return tuple(s for s in (self.out, self.bias) if s is not None)

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return self.slices[0].count


def linear(
    weight: str,
    shape: tuple[int, ...],
    bias: str | None = None,
    window: tuple[int, int] | None = None,
    part: str = "",
) -> AffineMap:
    """``x Wᵀ + b`` with W (out, in); ``window`` picks rows of a packed weight."""
    rows = (shape[0] if window is None else window[1] - window[0], shape[1])
    return AffineMap(
        Slices(weight, rows, (0,), "[j]", window, part),
        Slices(weight, rows, (1,), "[:, j]", window, part),
        None if bias is None else vector(bias, rows[0], window, part),
    )


def transposed_linear(weight: str, shape: tuple[int, ...], bias: str | None = None) -> AffineMap:
    """``x W + b`` with W (in, out), as Hugging Face's Conv1D has it."""
    size = (shape[0], shape[1])
    return AffineMap(
        Slices(weight, size, (1,), "[:, j]"),
        Slices(weight, size, (0,), "[j]"),
        None if bias is None else vector(bias, shape[1]),
    )


def conv(weight: str, shape: tuple[int, ...], bias: str | None = None, groups: int = 1) -> AffineMap:
    """Convolution, W (out, in/groups, …)."""
    out, per_group, kernel = shape[0], shape[1], prod(shape[2:])
    return AffineMap(
        Slices(weight, (out, per_group * kernel), (0,), "[j]"),
        Slices(weight, (groups, out // groups, per_group, kernel), (0, 2), "[:, j]"),
        None if bias is None else vector(bias, out),
        groups,
    )


def transposed_conv(weight: str, shape: tuple[int, ...], bias: str | None = None, groups: int = 1) -> AffineMap:
    """Transposed convolution, W (in, out/groups, …)."""
    into, per_group, kernel = shape[0], shape[1], prod(shape[2:])
    return AffineMap(
        Slices(weight, (groups, into // groups, per_group, kernel), (0, 2), "[:, j]"),
        Slices(weight, (into, per_group * kernel), (0,), "[j]"),
        None if bias is None else vector(bias, per_group * groups),
        groups,
    )


def embedding(weight: str, shape: tuple[int, ...]) -> AffineMap:
    """A lookup table E (entries, channels): it writes E[:, j] and reads no channel."""
    return AffineMap(Slices(weight, (shape[0], shape[1]), (1,), "[:, j]"), None)


def scale(weight: str | None, bias: str | None, size: int) -> AffineMap:
    """The affine part of a norm, γ ⊙ x̂ + β."""
    return AffineMap(
        None if weight is None else vector(weight, size),
        None,
        None if bias is None else vector(bias, size),
        groups=size,
    )


def is_hf_conv1d(module: nn.Module) -> bool:
    """Hugging Face's Conv1D, known by name so that transformers need not be installed."""
    return any(cls.__name__ == "Conv1D" and cls.__module__.startswith("transformers") for cls in type(module).__mro__)
