"""Write a network down: each call adds a node and returns its number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from lawful.errors import SettingError
from lawful.finder.circuits.circuit import Circuit, Map
from lawful.finder.circuits.nodes import Affine, Fixed, Input, InverseRoot, Mask, Node, Product, Softmax, Sum

NOTHING = np.zeros((0, 2), dtype=int)


@dataclass
class Builder:
    """A network in the making.

    >>> net = Builder()
    >>> h = net.dense(net.input(3), net.map("W1", 2, 3, bias="b1"))
    >>> net.circuit("one layer", h).size
    8
    """

    nodes: list[Node] = field(default_factory=list)
    maps: list[Map] = field(default_factory=list)
    _count: int = 0

    def circuit(self, name: str, output: int, classes: int = 0) -> Circuit:
        """The finished network; the output must be the node added last.

        ``classes``: of how many consecutive outputs a cross-entropy makes one softmax (a token's), 0 for all.
        """
        if output != len(self.nodes) - 1:
            raise ValueError("the output must be the last node")
        if classes and self.nodes[output].size % classes:
            raise ValueError(f"{self.nodes[output].size} outputs are no whole number of softmaxes over {classes}")
        return Circuit(name, tuple(self.maps), tuple(self.nodes), classes)

    def size(self, node: int) -> int:
        """Units of a node."""
        return self.nodes[node].size

    def _add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def _variables(self, shape: tuple[int, ...]) -> np.ndarray:
        at = self._count + np.arange(int(np.prod(shape))).reshape(shape)
        self._count += at.size
        return at

    def map(self, weight: str, *shape: int, bias: str = "", name: str = "") -> Map:
        """New parameters: a weight of this shape (out, in, …) and, if it has a name, a bias (out,)."""
        at = self._variables(shape)
        made = Map(name or weight, weight, at, bias, self._variables(shape[:1]) if bias else None)
        self.maps.append(made)
        return made

    def input(self, size: int) -> int:
        """Data."""
        return self._add(Input(size))

    def affine(self, parent: int, weights: np.ndarray, biases: np.ndarray | None = None, *, fed: bool = True) -> int:
        """A map given by the variable at each (unit written, unit read), −1 for zero, and of each offset."""
        out, into = np.nonzero(weights >= 0)
        places = np.stack([out, into, weights[out, into]], axis=1)
        offsets = NOTHING if biases is None else np.stack([np.arange(len(biases)), biases], axis=1)
        return self._add(Affine((parent,), len(weights), weights.shape[1], places, offsets, fed))

    def dense(self, parent: int, m: Map, copies: int = 1) -> int:
        """A fully connected map, the same one for each of ``copies`` tokens."""
        out, into = m.weight_at.shape
        weights = np.full((copies * out, copies * into), -1)
        for t in range(copies):
            weights[t * out : (t + 1) * out, t * into : (t + 1) * into] = m.weight_at
        return self.affine(parent, weights, None if m.bias_at is None else np.tile(m.bias_at, copies))

    def fixed(self, parent: int, matrix: Sequence[Sequence[int | Fraction]] | np.ndarray) -> int:
        """A constant linear map (units written, units read)."""
        exact = np.array(matrix, dtype=object)
        places = np.argwhere(exact != 0)
        coefficients = tuple(Fraction(c) for c in exact[exact != 0].tolist())
        return self._add(Fixed((parent,), len(exact), exact.shape[1], places, coefficients))

    def select(self, parent: int, units: Sequence[int] | np.ndarray) -> int:
        """Some units, in this order."""
        return self.fixed(parent, np.eye(self.size(parent), dtype=int)[np.asarray(units, dtype=int)])

    def add(self, *parents: int) -> int:
        """The sum."""
        return self._add(Sum(parents, self.size(parents[0])))

    def join(self, *parents: int) -> int:
        """One vector after the other."""
        total, start, parts = sum(self.size(p) for p in parents), 0, []
        for p in parents:
            parts.append(self.fixed(p, np.eye(total, self.size(p), -start, dtype=int)))
            start += self.size(p)
        return parts[0] if len(parts) == 1 else self.add(*parts)

    def relu(self, parent: int, slope: Fraction = Fraction(0)) -> int:
        """ReLU, or leaky ReLU with this slope."""
        return self._add(Mask((parent,), self.size(parent), slope))

    def product(self, left: int, right: int, size: int, places: Sequence[tuple[int, int, int]]) -> int:
        """Σ l_i r_j into ``size`` units, over places (o, i, j)."""
        widths = (self.size(left), self.size(right))
        return self._add(Product((left, right), size, widths, np.array(places, dtype=int)))

    def square(self, parent: int) -> int:
        """Each unit squared."""
        size = self.size(parent)
        return self.product(parent, parent, size, [(u, u, u) for u in range(size)])

    def softmax(self, parent: int, row: Sequence[int]) -> int:
        """Softmax of the units of each row."""
        return self._add(Softmax((parent,), self.size(parent), np.array(row, dtype=int)))

    def normalise(self, parent: int, group: Sequence[int] | np.ndarray, *, centre: bool, epsilon: bool) -> int:
        """(a − mean) / sqrt(variance + ε) over the units of each group; without ``centre`` a / sqrt(mean a² + ε).

        Raises:
            SettingError: groups so small that without ε only signs are left.
        """
        groups = np.asarray(group)
        size, number = len(groups), 1 + int(groups.max())
        counts = np.bincount(groups)
        if not epsilon and counts.min() < 2 + centre:
            raise SettingError(f"a norm with ε = 0 needs at least {2 + centre} units a group; got {counts.min()}")
        together = groups[:, None] == groups[None, :]
        share = np.array([[Fraction(int(same), int(counts[g])) for same in row]
                          for row, g in zip(together, groups, strict=True)], dtype=object)  # fmt: skip
        centred = self.fixed(parent, np.eye(size, dtype=int) - share) if centre else parent
        mean = [[Fraction(int(g == h), int(counts[h])) for g in groups] for h in range(number)]
        variance = self.fixed(self.square(centred), mean)
        root = self._add(InverseRoot((variance,), number, epsilon))
        return self.product(centred, root, size, [(u, u, int(g)) for u, g in enumerate(groups)])

    def rescale(self, parent: int, scale: Map, unit: Sequence[int] | np.ndarray) -> int:
        """γ ⊙ a + β, unit u with the channel ``unit[u]``; the error goes back through γ itself, as in a norm."""
        channel = np.asarray(unit)
        weights = np.full((len(channel), len(channel)), -1)
        np.fill_diagonal(weights, scale.weight_at[channel])
        return self.affine(parent, weights, None if scale.bias_at is None else scale.bias_at[channel], fed=False)
