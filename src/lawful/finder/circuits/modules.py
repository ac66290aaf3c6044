"""Read a PyTorch module as a circuit: an nn.Sequential of the leaves below."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product
from math import prod
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from lawful.errors import SettingError
from lawful.finder.architectures import kind_of, leaves_of, refuse_slope
from lawful.finder.circuits.build import Builder
from lawful.finder.circuits.circuit import Circuit, Map


@dataclass
class Reader:
    """Where reading stands: the network so far, the current node and its shape, and the maps that were met."""

    net: Builder
    node: int
    shape: tuple[int, ...]
    channels_first: bool = False
    maps: dict[int, Map] = field(default_factory=dict)
    biases: dict[int, torch.Tensor | None] = field(default_factory=dict)

    def map(self, name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> Map:
        """The map of a leaf; a leaf that is used twice keeps its variables."""
        made = self.maps.get(id(weight))
        if made is not None and self.biases[id(weight)] is not bias:
            raise ValueError("a weight that is used twice must come with the same bias")
        if made is None:
            if bias is not None and any(bias is other for other in self.biases.values()):
                raise ValueError("a bias that is used twice must come with the same weight")
            self.biases[id(weight)] = bias
            dotted = f"{name}." if name else ""
            own = f"{dotted}bias" if bias is not None else ""
            self.maps[id(weight)] = self.net.map(f"{dotted}weight", *weight.shape, bias=own, name=name or "weight")
        return self.maps[id(weight)]


def circuit_of(module: nn.Module, shape: Sequence[int] | None = None) -> Circuit:
    """The circuit of an ``nn.Sequential`` (nested ones too).

    Args:
        module: its leaves are of the types in :data:`LEAVES`.
        shape: of one input without the batch, e.g. (channels, length); not needed when the first leaf is Linear.

    Raises:
        SettingError: a leaf that cannot be read, or a shape that does not fit.
    """
    leaves = leaves_of(module)
    if not leaves:
        raise SettingError("find_laws: the module has no layers")
    for name, leaf in leaves:
        _check_kind(name, leaf)
    start = _first_shape(*leaves[0]) if shape is None else checked_shape(shape)
    net = Builder()
    reader = Reader(net, net.input(prod(start)), start)
    for name, leaf in leaves:
        try:
            LEAVES[kind_of(leaf)](reader, name, leaf)
        except ValueError as error:
            raise SettingError(f"find_laws: {name or type(leaf).__name__}: {error}") from error
    if not net.maps:
        raise SettingError("find_laws: the module has no parameters")
    features = reader.shape[0 if reader.channels_first else -1]
    if reader.channels_first and len(reader.shape) > 1:  # what one softmax sees stands together
        order = np.arange(prod(reader.shape)).reshape(features, -1).T.ravel()
        reader.node = net.select(reader.node, order)
    return net.circuit(type(module).__name__ + f" of {len(leaves)} layers", reader.node, features)


def checked_shape(shape: Any) -> tuple[int, ...]:
    """The shape of one input.

    Raises:
        SettingError: no list of whole numbers >= 1.
    """
    try:
        sizes = tuple(operator.index(n) for n in shape)
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise SettingError(f"find_laws: shape must be whole numbers >= 1, e.g. (channels, length); got {shape!r}")
    return sizes


def _check_kind(name: str, leaf: nn.Module) -> None:
    if kind_of(leaf) not in LEAVES:
        readable = ", ".join(sorted(kind.__name__ for kind in LEAVES))
        where = f" at {name}" if name else ""
        raise SettingError(
            f"find_laws: cannot read {kind_of(leaf).__name__}{where}; an nn.Sequential may have {readable}. Write "
            "other networks down with lawful.finder.circuits.build.Builder"
        )


def _first_shape(name: str, leaf: nn.Module) -> tuple[int, ...]:
    if isinstance(leaf, nn.Linear):
        return (leaf.in_features,)
    raise SettingError(
        f"find_laws: the network starts with {type(leaf).__name__} ({name}); pass shape=, the shape of one input "
        "without the batch, e.g. shape=(channels, length)"
    )


def _linear(r: Reader, name: str, leaf: Any) -> None:
    if r.shape[-1] != leaf.in_features:
        raise ValueError(f"expected {leaf.in_features} features, got an input of shape {r.shape}")
    r.node = r.net.dense(r.node, r.map(name, leaf.weight, leaf.bias), prod(r.shape[:-1]))
    r.shape, r.channels_first = (*r.shape[:-1], leaf.out_features), False


def _windows(
    shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, ...], list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]]:
    """The size written, and (position written, place in the kernel, position read) without padding."""
    axes = list(zip(shape, kernel, stride, padding, dilation, strict=True))
    size = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)
    if min(size) < 1:
        raise ValueError(f"an input of size {tuple(shape)} is too small")
    found = []
    for at in product(*map(range, size)):
        for t in product(*map(range, kernel)):
            read = tuple(a * s - p + u * d for a, u, (_, _, s, p, d) in zip(at, t, axes, strict=True))
            if all(0 <= x < n for x, n in zip(read, shape, strict=True)):
                found.append((at, t, read))
    return size, found


def _convolution(r: Reader, name: str, leaf: Any) -> None:
    if isinstance(leaf.padding, str) or leaf.padding_mode != "zeros":
        raise ValueError("padding must be a number of zeros")
    if len(r.shape) != 1 + len(leaf.kernel_size) or r.shape[0] != leaf.in_channels:
        sizes = "length" if len(leaf.kernel_size) == 1 else "height, width"
        raise ValueError(f"expected an input of shape ({leaf.in_channels}, {sizes}), channels first; got {r.shape}")
    m = r.map(name, leaf.weight, leaf.bias)
    size, windows = _windows(r.shape[1:], leaf.kernel_size, leaf.stride, leaf.padding, leaf.dilation)
    written, read = (leaf.out_channels, *size), r.shape
    weights = np.full((prod(written), prod(read)), -1)
    fan_in, per_group = leaf.in_channels // leaf.groups, leaf.out_channels // leaf.groups
    for (o, c), (at, t, place) in product(np.ndindex(leaf.out_channels, fan_in), windows):
        row = np.ravel_multi_index((o, *at), written)
        column = np.ravel_multi_index((o // per_group * fan_in + c, *place), read)
        weights[row, column] = m.weight_at[(o, c, *t)]
    biases = None if m.bias_at is None else np.repeat(m.bias_at, prod(size))
    r.node, r.shape, r.channels_first = r.net.affine(r.node, weights, biases), written, True


def _average(r: Reader, name: str, leaf: Any) -> None:
    axes = 1 if isinstance(leaf, nn.AvgPool1d) else 2
    if len(r.shape) != 1 + axes:
        raise ValueError(f"expected an input of {1 + axes} axes, channels first; got one of shape {r.shape}")
    kernel, stride, padding = (v if isinstance(v, tuple) else (v,) * axes
                               for v in (leaf.kernel_size, leaf.stride, leaf.padding))  # fmt: skip
    if leaf.ceil_mode or any(padding):
        raise ValueError("average pooling is read without padding and ceil_mode")
    size, windows = _windows(r.shape[1:], kernel, stride, padding, (1,) * axes)
    written, matrix = (r.shape[0], *size), np.zeros((r.shape[0] * prod(size), prod(r.shape)), dtype=object)
    for c, (at, _, place) in product(range(r.shape[0]), windows):
        row = np.ravel_multi_index((c, *at), written)
        matrix[row, np.ravel_multi_index((c, *place), r.shape)] = Fraction(1, prod(kernel))
    r.node, r.shape = r.net.fixed(r.node, matrix), written


def _relu(r: Reader, name: str, leaf: Any) -> None:
    refuse_slope(leaf)
    r.node = r.net.relu(r.node, Fraction(getattr(leaf, "negative_slope", 0)))


def _identity(r: Reader, name: str, leaf: Any) -> None:
    pass


def _flatten(r: Reader, name: str, leaf: Any) -> None:
    if (leaf.start_dim, leaf.end_dim) != (1, -1):
        raise ValueError("Flatten is read with its default dimensions")
    r.shape = (prod(r.shape),)


def _norm(r: Reader, name: str, leaf: Any) -> None:
    if tuple(leaf.normalized_shape) != r.shape[-1:]:
        raise ValueError(
            f"a norm over the last axis alone is read, normalized_shape ({r.shape[-1]},) here; "
            f"got {tuple(leaf.normalized_shape)}"
        )
    if leaf.eps is not None and not leaf.eps >= 0:
        raise ValueError(f"eps must be 0 or more; got {leaf.eps}")
    channels = r.shape[-1]
    tokens = prod(r.shape) // channels
    group = np.repeat(np.arange(tokens), channels)
    centre = isinstance(leaf, nn.LayerNorm)
    r.node = r.net.normalise(r.node, group, centre=centre, epsilon=leaf.eps is None or leaf.eps > 0)
    if leaf.weight is not None:
        m = r.map(name, leaf.weight, getattr(leaf, "bias", None))
        r.node = r.net.rescale(r.node, m, np.tile(np.arange(channels), tokens))


LEAVES: Final[dict[type[nn.Module], Callable[[Reader, str, Any], None]]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.AvgPool1d: _average,
    nn.AvgPool2d: _average,
    nn.ReLU: _relu,
    nn.LeakyReLU: _relu,
    nn.Identity: _identity,
    nn.Flatten: _flatten,
    nn.LayerNorm: _norm,
    nn.RMSNorm: _norm,
}
"""How each leaf is read."""
