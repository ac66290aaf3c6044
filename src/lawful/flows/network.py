"""A small multi-layer perceptron as a frozen NumPy value, and its parameters as one flat vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from lawful.errors import SettingError
from lawful.flows.activations import Activation, Floats, activation_named


@dataclass(frozen=True, slots=True)
class Network:
    """h_i = a_{i-1} W_iᵀ + b_i, a_i = σ_i(h_i), a_0 = x; the last layer is linear.  All arrays are float64.

    Make one with :meth:`make` (given arrays) or :meth:`random`.

    Attributes:
        weights: W_i of shape (out_i, in_i), i = 1 … L.
        biases: b_i of shape (out_i,), or None for a network without biases.
        activations: names of σ_1 … σ_{L-1} (see :data:`lawful.flows.activations.ACTIVATIONS`).

    Example:
        >>> import numpy as np
        >>> net = Network.make([np.eye(2), np.ones((1, 2))], activation="relu")
        >>> net.forward(np.array([[3.0, -1.0]]))
        array([[3.]])
        >>> net.with_theta(2 * net.theta()).forward(np.array([[3.0, -1.0]]))
        array([[12.]])
    """

    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...] | None
    activations: tuple[str, ...]

    @classmethod
    def make(
        cls,
        weights: Sequence[ArrayLike],
        biases: Sequence[ArrayLike] | None = None,
        *,
        activation: str | Sequence[str] = "linear",
    ) -> Network:
        """Copy the arrays to float64 and check that they fit together.

        Args:
            weights: one matrix (out, in) a layer.
            biases: one vector (out,) a layer, or None.
            activation: one name for all hidden layers, or one name a hidden layer.

        Raises:
            SettingError: shapes that do not chain, an unknown activation, a non-finite number.
        """
        W = tuple(np.array(w, dtype=np.float64, order="C") for w in weights)
        b = None if biases is None else tuple(np.array(v, dtype=np.float64) for v in biases)
        return cls._checked(W, b, activation)

    @classmethod
    def _checked(cls, W: tuple[Floats, ...], b: tuple[Floats, ...] | None, activation: str | Sequence[str]) -> Network:
        if not W or any(w.ndim != 2 or 0 in w.shape for w in W):
            raise SettingError(
                f"weights must be one or more non-empty matrices (out, in); got shapes {[w.shape for w in W]}"
            )
        for i in range(1, len(W)):
            if W[i].shape[1] != W[i - 1].shape[0]:
                raise SettingError(
                    f"weight {i + 1} must read the {W[i - 1].shape[0]} outputs of weight {i}; got shape {W[i].shape}"
                )
        if b is not None and [v.shape for v in b] != [(w.shape[0],) for w in W]:
            raise SettingError(f"biases must have shapes {[(w.shape[0],) for w in W]}; got {[v.shape for v in b]}")
        if not all(np.isfinite(p).all() for p in (*W, *(b or ()))):
            raise SettingError("weights and biases must be finite numbers")
        names = (activation,) * (len(W) - 1) if isinstance(activation, str) else tuple(activation)
        if len(names) != len(W) - 1:
            raise SettingError(f"expected {len(W) - 1} activations, one a hidden layer; got {len(names)}")
        for name in names:
            activation_named(name)
        return cls(W, b, names)

    @classmethod
    def random(
        cls,
        widths: Sequence[int],
        *,
        activation: str | Sequence[str] = "linear",
        bias: bool = False,
        init_scale: float | Sequence[float] | None = None,
        bias_scale: float = 0.0,
        seed: int | np.random.Generator = 0,
    ) -> Network:
        """Independent Gaussian weights.

        Args:
            widths: (n_0, n_1, …, n_L): inputs, hidden widths, outputs.
            activation: one name for all hidden layers, or one name a hidden layer.
            bias: whether layers have biases.
            init_scale: standard deviation of the elements of W_i, one number or one a layer; default 1/√in_i.
            bias_scale: standard deviation of the biases.
            seed: an integer or a NumPy generator.

        Raises:
            SettingError: fewer than two widths, a width < 1, a negative scale, an unknown activation.
        """
        if len(widths) < 2 or min(widths) < 1:
            raise SettingError(f"widths must be two or more integers >= 1 (inputs, hidden …, outputs); got {widths}")
        depth = len(widths) - 1
        if init_scale is None:
            scales = [width**-0.5 for width in widths[:-1]]
        else:
            scales = [init_scale] * depth if isinstance(init_scale, int | float) else list(init_scale)
        if len(scales) != depth or not all(0 <= s < np.inf for s in (*scales, bias_scale)):
            raise SettingError(f"init_scale must be a number >= 0, or {depth} of them, one a layer; got {init_scale}")
        generator = np.random.default_rng(seed)
        shapes = [(o, i) for i, o in zip(widths[:-1], widths[1:], strict=True)]
        weights = tuple(generator.standard_normal(shape) for shape in shapes)
        for weight, scale in zip(weights, scales, strict=True):
            np.multiply(weight, scale, out=weight)  # in place: W_1 may have a million rows
        biases = tuple(bias_scale * generator.standard_normal(o) for o in widths[1:]) if bias else None
        return cls._checked(weights, biases, activation)

    @property
    def depth(self) -> int:
        """L, the number of weight matrices."""
        return len(self.weights)

    @property
    def widths(self) -> tuple[int, ...]:
        """(n_0, n_1, …, n_L)."""
        return (self.weights[0].shape[1], *(w.shape[0] for w in self.weights))

    @property
    def size(self) -> int:
        """D, the number of parameters."""
        return sum(w.size for w in self.weights) + sum(b.size for b in self.biases or ())

    @property
    def sigmas(self) -> tuple[Activation, ...]:
        """The activations σ_1 … σ_{L-1} themselves."""
        return tuple(activation_named(name) for name in self.activations)

    @property
    def linear(self) -> bool:
        """Whether every activation is the identity."""
        return all(name == "linear" for name in self.activations)

    @property
    def smooth(self) -> bool:
        """Whether no activation has a kink."""
        return all(sigma.smooth for sigma in self.sigmas)

    def theta(self) -> Floats:
        """All parameters as one new vector (D,): W_1 row by row, b_1, W_2, b_2, …."""
        parts = [p.ravel() for i in range(self.depth) for p in self._layer(i)]
        return np.concatenate(parts)

    def _layer(self, i: int) -> tuple[Floats, ...]:
        return (self.weights[i],) if self.biases is None else (self.weights[i], self.biases[i])

    def unpack(self, theta: Floats) -> tuple[list[Floats], list[Floats] | None]:
        """The weights and biases inside a flat vector, as *views* of it; the inverse of :meth:`theta`.

        Leading axes are kept: (T, D) gives weights (T, out, in) and biases (T, out), so a whole trajectory unpacks.

        Raises:
            SettingError: the last axis of ``theta`` is not D long.
        """
        if theta.shape[-1:] != (self.size,):
            raise SettingError(f"theta must have {self.size} elements in its last axis; got shape {theta.shape}")
        lead, at = theta.shape[:-1], 0
        weights: list[Floats] = []
        biases: list[Floats] = []
        for w in self.weights:
            weights.append(theta[..., at : at + w.size].reshape(*lead, *w.shape))
            at += w.size
            if self.biases is not None:
                biases.append(theta[..., at : at + w.shape[0]])
                at += w.shape[0]
        return weights, None if self.biases is None else biases

    def with_theta(self, theta: Floats) -> Network:
        """The same architecture with a copy of these parameters (D,)."""
        weights, biases = self.unpack(np.array(theta, dtype=np.float64))
        return replace(self, weights=tuple(weights), biases=None if biases is None else tuple(biases))

    def forward(self, X: Floats) -> Floats:
        """Outputs (n, m) for inputs (n, d)."""
        return self.activities(X)[1][-1]

    def activities(self, X: Floats) -> tuple[list[Floats], list[Floats]]:
        """Pre-activations [h_1 … h_L] and activities [a_0 … a_{L-1}, output], each (n, width)."""
        hs: list[Floats] = []
        activities = [X]
        sigmas = self.sigmas
        for i, w in enumerate(self.weights):
            h = activities[-1] @ w.T
            if self.biases is not None:
                h += self.biases[i]
            hs.append(h)
            activities.append(h if i == self.depth - 1 else sigmas[i].value(h))
        return hs, activities
