"""The networks whose laws are counted: fully connected layers, and where each parameter sits in θ."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
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
        if activation is not None or bias:
            raise SettingError("find_laws: activation and bias are options of layer sizes; a module has its own")
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


def is_plain_sequential(module: object) -> bool:
    """An ``nn.Sequential`` that evaluates its children one after the other; subclasses with a ``forward`` do not."""
    return isinstance(module, torch.nn.Sequential) and type(module).forward is torch.nn.Sequential.forward


def leaves_of(module: torch.nn.Module, path: str = "") -> list[tuple[str, torch.nn.Module]]:
    """Dotted names and leaves in the order of evaluation; a leaf that stands at two places comes twice."""
    if not is_plain_sequential(module):
        return [(path, module)]
    children = module._modules.items()  # named_children() leaves out what it has seen
    inner = [(f"{path}.{name}" if path else name, child) for name, child in children if child is not None]
    return [leaf for name, child in inner for leaf in leaves_of(child, name)]


def linear_layers(module: torch.nn.Module) -> list[torch.nn.Linear]:
    """In the order of evaluation."""
    return [leaf for _, leaf in leaves_of(module) if isinstance(leaf, torch.nn.Linear)]


def kind_of(leaf: torch.nn.Module) -> type[torch.nn.Module]:
    """Its class, below an attached rule."""
    return getattr(leaf, "lawful_base", type(leaf))


def is_chain(source: object) -> bool:
    """True for modules that are read as an :class:`Architecture` (whether or not that succeeds).

    These are Linear layers, each used once, with the same activation between all of them or with none.
    """
    if not isinstance(source, torch.nn.Linear) and not is_plain_sequential(source):
        return False
    leaves = _without_data(source)
    kinds = [kind_of(leaf) for leaf in leaves]
    weights = [id(w) for leaf in leaves if isinstance(leaf, torch.nn.Linear) for w in leaf.parameters()]
    between = set(kinds) - {torch.nn.Linear}
    if not between <= set(MODULES) or len(between) > 1 or len(set(weights)) < len(weights):
        return False
    alternate = len(kinds) % 2 == 1 and all((kind is torch.nn.Linear) == (i % 2 == 0) for i, kind in enumerate(kinds))
    return between <= {torch.nn.Identity} or alternate


def refuse_slope(leaf: torch.nn.Module) -> None:
    """Slopes count as free data, which those of a leaky ReLU with slope 1 are not.

    Raises:
        SettingError: such a leaf, or a slope that is no number.
    """
    slope = leaf.negative_slope if isinstance(leaf, torch.nn.LeakyReLU) else 0.0
    if slope == 1:
        raise SettingError("find_laws: a LeakyReLU with slope 1 is linear; leave it out")
    if not math.isfinite(slope):
        raise SettingError(f"find_laws: the slope of a LeakyReLU must be finite; got {slope}")


def refuse_masks_that_matter(source: object, masks_are_free: bool, ends_are_free: tuple[bool, bool]) -> None:
    """Dropout, and other slopes than PyTorch's, change no law where masks are free data, and only there.

    Args:
        source: the module, if it is one.
        masks_are_free: whether any numbers may stand for the slopes of hidden units.
        ends_are_free: whether what Dropout does to inputs, and to errors at the output, is nothing new.

    Raises:
        SettingError: naming the layer.
    """
    if not isinstance(source, torch.nn.Module):
        return
    leaves = leaves_of(source)
    slopes = {leaf.negative_slope for _, leaf in leaves if isinstance(leaf, torch.nn.LeakyReLU)}
    linear = [number for number, (_, leaf) in enumerate(leaves) if isinstance(leaf, torch.nn.Linear)]
    for number, (name, leaf) in enumerate(leaves):
        kind, where = kind_of(leaf), f" at {name}" if name else ""
        before, after = number < linear[0], number > linear[-1]
        free = ends_are_free[0] if before else ends_are_free[1] if after else masks_are_free
        if kind is torch.nn.Dropout and leaf.p == 1:
            raise SettingError(f"find_laws: Dropout{where} with p=1 sends nothing on, so nothing learns")
        if kind is torch.nn.Dropout and leaf.p and not free:
            raise SettingError(
                f"find_laws: Dropout{where} masks what is linear, or patterns that are not free, here; its laws are "
                "counted for networks of ReLU under bp, fa, kp and dfa on all inputs; take p=0 or leave it out"
            )
        if kind is torch.nn.LeakyReLU and not masks_are_free and slopes not in ({0}, {float(_LEAKY[0])}):
            raise SettingError(
                f"find_laws: LeakyReLU{where} has slope {leaf.negative_slope}; where not all activation patterns are "
                f"free (sign rules, mdfa, given inputs) it is counted with slope {float(_LEAKY[0])} only"
            )


def _without_data(module: Any) -> list[torch.nn.Module]:
    """Its leaves but those that change no law: reshaping, and masks that count as data."""
    return [leaf for _, leaf in leaves_of(module) if not (_is_flatten(leaf) or kind_of(leaf) is torch.nn.Dropout)]


def _is_flatten(leaf: torch.nn.Module) -> bool:
    return kind_of(leaf) is torch.nn.Flatten and (leaf.start_dim, leaf.end_dim) == (1, -1)


def reads_as_vectors(module: torch.nn.Module, shape: Sequence[int] | None) -> bool:
    """Whether one input of a chain is one vector, not one for each of several tokens."""
    if shape is None:
        return True
    width, flat = linear_layers(module)[0].in_features, False
    for _, leaf in leaves_of(module):
        flat |= _is_flatten(leaf)
        if isinstance(leaf, torch.nn.Linear):
            break
    return tuple(shape) == (width,) or (flat and math.prod(shape) == width)


def _from_module(module: torch.nn.Module) -> Architecture:
    leaves, linear = _without_data(module), linear_layers(module)
    others = [leaf for leaf in leaves if not isinstance(leaf, torch.nn.Linear)]
    if not linear or not is_chain(module):
        allowed = ", ".join(sorted(kind.__name__ for kind in MODULES))
        raise SettingError(
            f"find_laws: expected an nn.Sequential of Linear layers with the same one of {allowed} between them all; "
            f"got {', '.join(kind_of(leaf).__name__ for leaf in leaves) or 'no layers'}. Give the widths instead."
        )
    for before, after in pairwise(linear):
        if before.out_features != after.in_features:
            raise SettingError(
                f"find_laws: a Linear layer writes {before.out_features} features and the next one reads "
                f"{after.in_features}"
            )
    for leaf in others:
        refuse_slope(leaf)
    widths = (linear[0].in_features, *(leaf.out_features for leaf in linear))
    name = MODULES[kind_of(others[0])] if others else "linear"
    if name == "leaky_relu" and not any(leaf.negative_slope for leaf in others):
        name = "relu"
    return Architecture(widths, name, tuple(leaf.bias is not None for leaf in linear))
