"""What a network is made of. Every node knows its value, how errors travel down through it, how changes travel up.

    value   a = f(inputs; θ)
    pull    δ of the inputs from δ of the node; a map that is fed back has B where its weight stands
    push    the change of the node from the changes of its inputs and of θ; again B where the weight stands

``pull`` and ``push`` are transposes of each other, so Σ_v ḣ_v F_v = −⟨e, push of ḣ to the output⟩: two programs for the
same field. What one of them finds, the other one verifies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from lawful.finder.circuits.arithmetic import Arithmetic, Value


@dataclass
class State:
    """The arithmetic and the numbers that maps read: θ, the feedback B (one for each variable), and a change of θ."""

    ar: Arithmetic
    theta: Value
    B: Value = None
    moved: Value = None


@dataclass
class Here:
    """At one node: the values of its inputs, its free data, and its own value."""

    inputs: Sequence[Value]
    data: Value
    value: Value = None


class Node(ABC):
    """One vector of ``size`` units; concrete nodes are final."""

    parents: tuple[int, ...]
    size: int
    has_data: ClassVar[bool] = False

    @abstractmethod
    def value(self, s: State, here: Here) -> Value:
        """The units from the inputs."""

    @abstractmethod
    def pull(self, s: State, here: Here, delta: Value) -> list[Value]:
        """δ of each input."""

    @abstractmethod
    def push(self, s: State, here: Here, changes: Sequence[Value]) -> Value:
        """The change of the units."""


@dataclass(frozen=True, eq=False)
class Input(Node):
    """Data that enters: free numbers."""

    size: int
    parents: tuple[int, ...] = ()
    has_data: ClassVar[bool] = True

    def value(self, s: State, here: Here) -> Value:
        """The data."""
        return here.data

    def pull(self, s: State, here: Here, delta: Value) -> list[Value]:
        """Nothing below."""
        return []

    def push(self, s: State, here: Here, changes: Sequence[Value]) -> Value:
        """Data do not change."""
        return None


@dataclass(frozen=True, eq=False)
class Affine(Node):
    """h_o = Σ θ[v] a[k] + Σ θ[u] over places (o, k, v) and offsets (o, u); a variable may have many places.

    Attributes:
        parents: the node that is read.
        size: units written.
        width: units read.
        places: (m, 3) of (unit written, unit read, variable).
        offsets: (m, 2) of (unit written, variable).
        fed: errors travel down through B (False: through θ itself, as in the affine part of a norm).
    """

    parents: tuple[int, ...]
    size: int
    width: int
    places: np.ndarray
    offsets: np.ndarray
    fed: bool = True

    def _apply(self, s: State, weights: Value, a: Value) -> Value:
        out, into, variable = self.places.T
        return s.ar.collect(s.ar.times(s.ar.take(a, into), s.ar.take(weights, variable)), out, self.size)

    def _offset(self, s: State, theta: Value) -> Value:
        out, variable = self.offsets.T
        return s.ar.collect(s.ar.take(theta, variable), out, self.size) if len(out) else None

    def value(self, s: State, here: Here) -> Value:
        """W a + b."""
        return s.ar.add(self._apply(s, s.theta, here.inputs[0]), self._offset(s, s.theta))

    def pull(self, s: State, here: Here, delta: Value) -> list[Value]:
        """δ B."""
        out, into, variable = self.places.T
        weights = s.ar.take(s.B if self.fed else s.theta, variable)
        return [s.ar.collect(s.ar.times(s.ar.take(delta, out), weights), into, self.width)]

    def push(self, s: State, here: Here, changes: Sequence[Value]) -> Value:
        """B ȧ + Ẇ a + ḃ."""
        carried = self._apply(s, s.B if self.fed else s.theta, changes[0])
        own = s.ar.add(self._apply(s, s.moved, here.inputs[0]), self._offset(s, s.moved))
        return s.ar.add(carried, own)

    def rate(self, s: State, here: Here, delta: Value, size: int) -> Value:
        """−δᵀ a and −δ, summed over the places of each of the ``size`` variables."""
        out, into, variable = self.places.T
        rate = s.ar.collect(s.ar.times(s.ar.take(delta, out), s.ar.take(here.inputs[0], into)), variable, size)
        out, variable = self.offsets.T
        if len(out):
            rate = s.ar.add(rate, s.ar.collect(s.ar.take(delta, out), variable, size))
        return s.ar.times(rate, s.ar.constant(np.array([-1], dtype=object)))


@dataclass(frozen=True, eq=False)
class Fixed(Node):
    """A constant linear map, a_o = Σ c · a[k] over places (o, k), c rational: wiring, means, centring."""

    parents: tuple[int, ...]
    size: int
    width: int
    places: np.ndarray
    coefficients: tuple[Fraction, ...]

    def _moved(self, s: State, a: Value, source: np.ndarray, target: np.ndarray, size: int) -> Value:
        factors = s.ar.constant(np.array(self.coefficients, dtype=object))
        return s.ar.collect(s.ar.times(s.ar.take(a, source), factors), target, size)

    def value(self, s: State, here: Here) -> Value:
        """M a."""
        return self.push(s, here, here.inputs)

    def pull(self, s: State, here: Here, delta: Value) -> list[Value]:
        """Mᵀ δ."""
        return [self._moved(s, delta, self.places[:, 0], self.places[:, 1], self.width)]

    def push(self, s: State, here: Here, changes: Sequence[Value]) -> Value:
        """M ȧ."""
        return self._moved(s, changes[0], self.places[:, 1], self.places[:, 0], self.size)


@dataclass(frozen=True, eq=False)
class Sum(Node):
    """The sum of nodes of one size: where branches meet in a residual stream."""

    parents: tuple[int, ...]
    size: int

    def value(self, s: State, here: Here) -> Value:
        """Σ a."""
        return self.push(s, here, here.inputs)

    def pull(self, s: State, here: Here, delta: Value) -> list[Value]:
        """δ to every branch."""
        return [delta] * len(self.parents)

    def push(self, s: State, here: Here, changes: Sequence[Value]) -> Value:
        """Σ ȧ."""
        total: Value = None
        for change in changes:
            total = s.ar.add(total, change)
        return total


@dataclass(frozen=True, eq=False)
class Mask(Node):
    """ReLU or leaky ReLU: a = s ⊙ h, the slopes s data.

    Attributes:
        parents: h.
        size: units.
        slope: of the units that are off.
    """

    parents: tuple[int, ...]
    size: int
    slope: Fraction = Fraction(0)
    has_data: ClassVar[bool] = True

    def value(self, s: State, here: Here) -> Value:
        """Slopes times h."""
        return s.ar.times(here.inputs[0], here.data)

    def pull(self, s: State, here: Here, delta: Value) -> list[Value]:
        """Slopes times δ."""
        return [s.ar.times(delta, here.data)]

    def push(self, s: State, here: Here, changes: Sequence[Value]) -> Value:
        """Slopes times ḣ."""
        return s.ar.times(changes[0], here.data)


@dataclass(frozen=True, eq=False)
class Product(Node):
    """a_o = Σ l_i r_j over places (o, i, j): attention scores, mixing by attention weights, gates, squares."""

    parents: tuple[int, ...]
    size: int
    widths: tuple[int, int]
    places: np.ndarray

    def _joined(self, s: State, left: Value, right: Value) -> Value:
        out, i, j = self.places.T
        return s.ar.collect(s.ar.times(s.ar.take(left, i), s.ar.take(right, j)), out, self.size)

    def value(self, s: State, here: Here) -> Value:
        """Σ l r."""
        return self._joined(s, *here.inputs)

    def pull(self, s: State, here: Here, delta: Value) -> list[Value]:
        """δ r to the left, δ l to the right."""
        out, i, j = self.places.T
        sent, (left, right) = s.ar.take(delta, out), here.inputs
        return [
            s.ar.collect(s.ar.times(sent, s.ar.take(right, j)), i, self.widths[0]),
            s.ar.collect(s.ar.times(sent, s.ar.take(left, i)), j, self.widths[1]),
        ]

    def push(self, s: State, here: Here, changes: Sequence[Value]) -> Value:
        """Σ l̇ r + l ṙ."""
        left, right = here.inputs
        return s.ar.add(self._joined(s, changes[0], right), self._joined(s, left, changes[1]))


@dataclass(frozen=True, eq=False)
class Softmax(Node):
    """P = softmax of the scores of each row: free data with row sums 1, and dP = P ⊙ (dS − Σ_row P dS).

    Attributes:
        parents: the scores, without those a mask removes.
        size: number of scores.
        row: the row that each score belongs to.
    """

    parents: tuple[int, ...]
    size: int
    row: np.ndarray
    has_data: ClassVar[bool] = True

    def _turned(self, s: State, P: Value, change: Value) -> Value:
        """The Jacobian, which is symmetric, times a vector."""
        weighted = s.ar.times(P, change)
        mean = s.ar.take(s.ar.collect(weighted, self.row, 1 + int(self.row.max())), self.row)
        back = s.ar.times(s.ar.times(P, mean), s.ar.constant(np.array([-1], dtype=object)))
        return s.ar.add(weighted, back)

    def value(self, s: State, here: Here) -> Value:
        """P."""
        return s.ar.follow(here.data, here.inputs[0], lambda P, change: self._turned(s, P, change))

    def pull(self, s: State, here: Here, delta: Value) -> list[Value]:
        """P ⊙ (δ − Σ_row P δ)."""
        return [self._turned(s, here.value, delta)]

    def push(self, s: State, here: Here, changes: Sequence[Value]) -> Value:
        """P ⊙ (Ṡ − Σ_row P Ṡ)."""
        return self._turned(s, here.value, changes[0])


@dataclass(frozen=True, eq=False)
class InverseRoot(Node):
    """r = (v + ε)^{−1/2}, one a unit: data with r²(v + ε) = 1, and dr = −½ r³ dv.

    Attributes:
        parents: the variances v.
        size: number of variances.
        epsilon: True: ε > 0, generic, the same in all units of this node; False: ε = 0.
    """

    parents: tuple[int, ...]
    size: int
    epsilon: bool
    has_data: ClassVar[bool] = True

    def _turned(self, s: State, r: Value, change: Value) -> Value:
        cube = s.ar.times(r, s.ar.times(r, r))
        return s.ar.times(s.ar.times(cube, change), s.ar.constant(np.array([Fraction(-1, 2)], dtype=object)))

    def value(self, s: State, here: Here) -> Value:
        """The roots."""
        return s.ar.follow(here.data, here.inputs[0], lambda r, change: self._turned(s, r, change))

    def pull(self, s: State, here: Here, delta: Value) -> list[Value]:
        """−½ r³ δ."""
        return [self._turned(s, here.value, delta)]

    def push(self, s: State, here: Here, changes: Sequence[Value]) -> Value:
        """−½ r³ v̇."""
        return self._turned(s, here.value, changes[0])
