"""The networks whose laws are counted: fully connected layers, and where each parameter sits in θ."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch

from lawful.errors import SettingError
from lawful.finder import residues as ff


@dataclass(frozen=True)
class Activation:
    """An activation as counting sees it.

    Attributes:
        name: its name.
        degree: k when positively homogeneous of degree k, else None.
        slopes: the slopes for h < 0 and h > 0 where the activation has masks, else None.
        apply: (h, mask, value) -> (a, σ'(h)); ``value`` is the free value of a transcendental function.
        linear: True for the identity.
    """

    name: str
    degree: int | None
    slopes: tuple[Fraction, Fraction] | None
    apply: Callable[[Any, Any, Any], tuple[Any, Any]]
    linear: bool = False


def _identity(h: Any, mask: Any, value: Any) -> tuple[Any, Any]:
    return h, np.ones(1)


def _masked(h: Any, mask: Any, value: Any) -> tuple[Any, Any]:
    return ff.times(h, mask), mask


def _square(h: Any, mask: Any, value: Any) -> tuple[Any, Any]:
    return ff.times(h, h), ff.scale(h, 2.0)


def _squared_relu(h: Any, mask: Any, value: Any) -> tuple[Any, Any]:
    return ff.times(ff.times(h, h), mask), ff.times(ff.scale(h, 2.0), mask)


def _transcendental(slope: Callable[[Any], Any]) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    def apply(h: Any, mask: Any, value: Any) -> tuple[Any, Any]:
        a = ff.solves_ode(value, slope, h)
        return a, slope(a)

    return apply


def _one_minus_square(a: Any) -> Any:
    return ff.add(np.ones(1), ff.scale(ff.times(a, a), -1.0))


def _logistic(a: Any) -> Any:
    return ff.add(a, ff.scale(ff.times(a, a), -1.0))


_RELU: Final = (Fraction(0), Fraction(1))
_LEAKY: Final = (Fraction(1, 100), Fraction(1))

ACTIVATIONS: Final[dict[str, Activation]] = {
    activation.name: activation
    for activation in (
        Activation("linear", 1, None, _identity, linear=True),
        Activation("relu", 1, _RELU, _masked),
        Activation("leaky_relu", 1, _LEAKY, _masked),
        Activation("square", 2, None, _square),
        Activation("squared_relu", 2, _RELU, _squared_relu),
        Activation("tanh", None, None, _transcendental(_one_minus_square)),
        Activation("sigmoid", None, None, _transcendental(_logistic)),
    )
}
"""By name; leaky ReLU has PyTorch's slope, and any other gives the same count where masks are free."""

MODULES: Final[dict[type, str]] = {
    torch.nn.ReLU: "relu",
    torch.nn.LeakyReLU: "leaky_relu",
    torch.nn.Tanh: "tanh",
    torch.nn.Sigmoid: "sigmoid",
    torch.nn.Identity: "linear",
}


@dataclass(frozen=True)
class Architecture:
    """Widths (n_0, …, n_L), one activation for all hidden layers, and which layers have a bias.

    Raises:
        SettingError: fewer than two widths, a width <= 0, an unknown activation.
    """

    widths: tuple[int, ...]
    activation: str = "relu"
    biases: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in self.widths):
            raise SettingError(
                f"find_laws: widths must be at least two whole numbers >= 1, inputs first; got {list(self.widths)}"
            )
        if not isinstance(self.activation, str) or self.activation not in ACTIVATIONS:
            raise SettingError(
                f"find_laws: activation must be one of {', '.join(ACTIVATIONS)}; got {self.activation!r}"
            )
        if not self.biases:
            object.__setattr__(self, "biases", (False,) * self.depth)

    @property
    def depth(self) -> int:
        """Number of weight matrices L."""
        return len(self.widths) - 1

    @property
    def sigma(self) -> Activation:
        """The activation."""
        return ACTIVATIONS[self.activation]

    @cached_property
    def weight_at(self) -> tuple[np.ndarray, ...]:
        """Per layer, the position in θ of every entry of W_i (out, in)."""
        return self._layout[0]

    @cached_property
    def bias_at(self) -> tuple[np.ndarray | None, ...]:
        """Per layer, the position in θ of every entry of b_i, or None."""
        return self._layout[1]

    @cached_property
    def _layout(self) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray | None, ...]]:
        weights, biases, start = [], [], 0
        for i in range(self.depth):
            fan_in, fan_out = self.widths[i], self.widths[i + 1]
            weights.append(np.arange(start, start + fan_in * fan_out).reshape(fan_out, fan_in))
            start += fan_in * fan_out
            biases.append(np.arange(start, start + fan_out) if self.biases[i] else None)
            start += fan_out * self.biases[i]
        return tuple(weights), tuple(biases)

    @property
    def size(self) -> int:
        """D: the number of weights and biases."""
        return sum(n * m + m * b for n, m, b in zip(self.widths, self.widths[1:], self.biases, strict=False))

    def names(self) -> list[str]:
        """The name of every coordinate of θ, counted from 1: ``W1[2,1]``, ``b1[2]``."""
        names = [""] * self.size
        for i in range(self.depth):
            for (j, k), at in np.ndenumerate(self.weight_at[i]):
                names[at] = f"W{i + 1}[{j + 1},{k + 1}]"
            bias = self.bias_at[i]
            for j, at in enumerate([] if bias is None else bias):
                names[at] = f"b{i + 1}[{j + 1}]"
        return names


def architecture_of(source: Sequence[int] | torch.nn.Module, activation: str | None, bias: bool) -> Architecture:
    """The architecture that widths, or an ``nn.Sequential`` of Linear layers and activations, stand for.

    Raises:
        SettingError: a module that is no chain of Linear layers with one activation between them.
    """
    if isinstance(source, torch.nn.Module):
        return _from_module(source)
    if not isinstance(bias, bool):
        raise SettingError(f"find_laws: bias must be True or False; got {bias!r}")
    try:
        widths = tuple(w if isinstance(w, bool) else operator.index(w) for w in source)
    except TypeError as error:
        raise SettingError(
            f"find_laws: widths must be at least two whole numbers >= 1, inputs first, or a module; got {source!r}"
        ) from error
    return Architecture(widths, "relu" if activation is None else activation, (bias,) * max(1, len(widths) - 1))


def is_chain(source: object) -> bool:
    """True for modules that are read as an :class:`Architecture` (whether or not that succeeds)."""
    if not isinstance(source, torch.nn.Sequential | torch.nn.Linear):
        return False
    leaves = [leaf for leaf in source.modules() if not list(leaf.children())]
    kinds = {type(leaf) for leaf in leaves} - {torch.nn.Linear, torch.nn.Flatten, torch.nn.Dropout}
    between = sum(type(leaf) in MODULES for leaf in leaves)
    linear = sum(isinstance(leaf, torch.nn.Linear) for leaf in leaves)
    return kinds <= set(MODULES) and len(kinds) <= 1 and (kinds <= {torch.nn.Identity} or between == linear - 1)


def _from_module(module: torch.nn.Module) -> Architecture:
    leaves = [leaf for leaf in module.modules() if not list(leaf.children())]
    linear = [leaf for leaf in leaves if isinstance(leaf, torch.nn.Linear)]
    others = [leaf for leaf in leaves if not isinstance(leaf, torch.nn.Linear | torch.nn.Flatten | torch.nn.Dropout)]
    unknown = [type(leaf).__name__ for leaf in others if type(leaf) not in MODULES]
    if unknown or not linear or not isinstance(module, torch.nn.Sequential | torch.nn.Linear):
        allowed = ", ".join(sorted(kind.__name__ for kind in MODULES))
        raise SettingError(
            f"find_laws: expected an nn.Sequential of Linear layers and one of {allowed} between them; "
            f"got {type(module).__name__}{' with ' + ', '.join(unknown) if unknown else ''}. Give the widths instead."
        )
    names = {MODULES[type(leaf)] for leaf in others} or {"linear"}
    between = [MODULES[type(leaf)] for leaf in others]
    if len(names) > 1 or (names != {"linear"} and len(between) != len(linear) - 1):
        raise SettingError(
            "find_laws: expected the same activation after every hidden Linear layer and none after the last; got "
            + ", ".join(type(leaf).__name__ for leaf in leaves)
        )
    widths = (linear[0].in_features, *(leaf.out_features for leaf in linear))
    return Architecture(widths, names.pop(), tuple(leaf.bias is not None for leaf in linear))
