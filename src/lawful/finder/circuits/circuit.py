"""A network as a list of nodes over numbered variables, and the two sweeps through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lawful.errors import SettingError
from lawful.finder.circuits.arithmetic import Value
from lawful.finder.circuits.nodes import Affine, Here, InverseRoot, Mask, Node, Softmax, State


@dataclass(frozen=True, eq=False)
class Map:
    """The parameters of one affine map.

    Attributes:
        name: what tables call it.
        weight: its name, e.g. "0.weight".
        weight_at: the variable of each entry: (out, in, …), or (units,) for the scale of a norm.
        bias: its name, or "".
        bias_at: (out,), or None.
    """

    name: str
    weight: str
    weight_at: np.ndarray
    bias: str = ""
    bias_at: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Circuit:
    """Nodes in the order of evaluation; the last one is the output.

    Attributes:
        name: for tables.
        maps: who owns which variable; together they own 0 … D - 1, each once.
        nodes: the network.
        classes: how many consecutive outputs one softmax sees; 0 for all of them.
    """

    name: str
    maps: tuple[Map, ...]
    nodes: tuple[Node, ...]
    classes: int = 0

    @property
    def logits(self) -> int:
        """How many consecutive outputs have errors that sum to zero when the outputs go through a softmax."""
        return self.classes or self.nodes[-1].size

    @cached_property
    def size(self) -> int:
        """D."""
        return len(self.names)

    @cached_property
    def names(self) -> list[str]:
        """Every variable's name: ``W1[1,2]``, ``0.bias[3]``."""
        names: dict[int, str] = {}
        for m in self.maps:
            for name, at in ((m.weight, m.weight_at), (m.bias, m.bias_at)):
                for index, variable in np.ndenumerate(np.zeros(0, int) if at is None else at):
                    names[int(variable)] = f"{name}[{','.join(str(i + 1) for i in index)}]"
        if sorted(names) != list(range(len(names))):
            raise SettingError(f"circuit {self.name}: the maps must own the variables 0 … D - 1")
        return [names[variable] for variable in range(len(names))]

    @cached_property
    def moved(self) -> tuple[bool, ...]:
        """Per node, whether its value depends on θ."""
        moved: list[bool] = []
        for node in self.nodes:
            moved.append(isinstance(node, Affine) or any(moved[p] for p in node.parents))
        return tuple(moved)

    @cached_property
    def masks_below(self) -> tuple[int, ...]:
        """The ReLU nodes that a softmax or a norm depends on."""
        below = set[int]()
        for number in reversed(range(len(self.nodes))):
            if number in below or isinstance(self.nodes[number], Softmax | InverseRoot):
                below |= set(self.nodes[number].parents)
        return tuple(number for number in sorted(below) if isinstance(self.nodes[number], Mask))

    @cached_property
    def candidates_per_sample(self) -> int:
        """How many random samples it takes on average until every square root is rational modulo a prime."""
        return 2 ** sum(node.size for node in self.nodes if isinstance(node, InverseRoot))

    @cached_property
    def feedback(self) -> np.ndarray:
        """The variables that have a B: weights through which an error goes on to other variables."""
        found = set[int]()
        for node in self.nodes:
            if isinstance(node, Affine) and node.fed and self.moved[node.parents[0]]:
                found |= {int(v) for v in node.places[:, 2]}
        return np.array(sorted(found), dtype=int)


Given = Callable[[int, Sequence[Value]], Value]
"""(number of a node with data, values of its inputs) -> its data."""


def forward(circuit: Circuit, s: State, given: Given) -> list[Here]:
    """The value of every node."""
    visited: list[Here] = []
    for number, node in enumerate(circuit.nodes):
        inputs = [visited[p].value for p in node.parents]
        here = Here(inputs, given(number, inputs) if node.has_data else None)
        here.value = node.value(s, here)
        visited.append(here)
    return visited


def backward(circuit: Circuit, s: State, visited: Sequence[Here], error: Value) -> Value:
    """F, the rate of every variable, from the output error: −∂loss/∂θ with B in the place of W."""
    moved = circuit.moved
    deltas: list[Value] = [None] * len(circuit.nodes)
    deltas[-1] = error
    total: Value = None
    for number in reversed(range(len(circuit.nodes))):
        node, delta = circuit.nodes[number], deltas[number]
        if delta is None:
            continue
        if isinstance(node, Affine):
            total = s.ar.add(total, node.rate(s, visited[number], delta, circuit.size))
        if any(moved[p] for p in node.parents):
            for parent, part in zip(node.parents, node.pull(s, visited[number], delta), strict=True):
                deltas[parent] = s.ar.add(deltas[parent], part) if moved[parent] else None
    return total


def tangent(circuit: Circuit, s: State, visited: Sequence[Here]) -> Value:
    """The change of the output when θ changes by ``s.moved``, with B in the place of W on the way up."""
    changes: list[Value] = []
    for node, here in zip(circuit.nodes, visited, strict=True):
        changes.append(node.push(s, here, [changes[p] for p in node.parents]))
    return changes[-1]
