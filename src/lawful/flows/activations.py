"""The activations of the NumPy networks: value, slope, and degree of homogeneity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lawful.errors import SettingError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Activation:
    """σ with its slope σ'; positively homogeneous of degree k when σ(ch) = cᵏ σ(h) for c > 0.

    Attributes:
        name: the key in :data:`ACTIVATIONS`.
        value: h to σ(h), elementwise.
        slope: h to σ'(h), elementwise (at a kink the value of the left side, as in PyTorch).
        degree: k, or None when σ is not homogeneous (no neuron law then).
        smooth: False when σ' jumps; adaptive solvers stall on such networks.
    """

    name: str
    value: Callable[[Floats], Floats]
    slope: Callable[[Floats], Floats]
    degree: int | None
    smooth: bool = True


_LEAK = 0.01


def _relu(h: Floats) -> Floats:
    return np.maximum(h, 0.0)


def _step(h: Floats) -> Floats:
    return (h > 0).astype(np.float64)


def _leaky(h: Floats) -> Floats:
    return np.where(h > 0, h, _LEAK * h)


def _leaky_slope(h: Floats) -> Floats:
    return np.where(h > 0, 1.0, _LEAK)


def _square(h: Floats) -> Floats:
    return np.maximum(h, 0.0) ** 2


def _square_slope(h: Floats) -> Floats:
    return 2 * np.maximum(h, 0.0)


def _tanh_slope(h: Floats) -> Floats:
    return 1 - np.tanh(h) ** 2


ACTIVATIONS: Final[dict[str, Activation]] = {
    a.name: a
    for a in (
        Activation("linear", np.copy, np.ones_like, 1),
        Activation("relu", _relu, _step, 1, smooth=False),
        Activation("leaky_relu", _leaky, _leaky_slope, 1, smooth=False),
        Activation("square", _square, _square_slope, 2),
        Activation("tanh", np.tanh, _tanh_slope, None),
    )
}
"""``square`` is the squared ReLU max(h, 0)² (k = 2); ``leaky_relu`` has PyTorch's slope 0.01."""


def activation_named(name: str) -> Activation:
    """The activation of this name.

    Raises:
        SettingError: no such activation.
    """
    if name not in ACTIVATIONS:
        raise SettingError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {name!r}")
    return ACTIVATIONS[name]
