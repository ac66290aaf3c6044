"""Numbers and names of the variables that laws are written in: the state, then the constant feedback weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lawful.finder.fields import System


@dataclass(frozen=True)
class Place:
    """Where a state variable sits: layer (from 0), row j, column k (None for a bias), and whether it is a B."""

    layer: int
    row: int
    column: int | None
    moving: bool = False


@dataclass(frozen=True)
class Symbols:
    """The variables of one system.

    State variables are 0 … dimension - 1 in the order of θ; the entries of constant feedback weights follow.
    """

    system: System

    @cached_property
    def moving_at(self) -> tuple[np.ndarray, ...]:
        """Per layer the state variables of a moving B_i (empty for i = 0)."""
        arch, start = self.system.arch, self.system.arch.size
        blocks = [np.zeros((0, 0), dtype=int)]
        for i in range(1, arch.depth if self.system.moving else 1):
            shape = (arch.widths[i + 1], arch.widths[i])
            blocks.append(np.arange(start, start + shape[0] * shape[1]).reshape(shape))
            start += shape[0] * shape[1]
        return tuple(blocks)

    @cached_property
    def feedback_at(self) -> tuple[np.ndarray, ...]:
        """Per layer the variables of the constant B_i (or D_i), shaped like it."""
        start, blocks = self.system.dimension, []
        for block in self.system.exact:
            blocks.append(np.arange(start, start + block.size).reshape(block.shape))
            start += block.size
        return tuple(blocks)

    @cached_property
    def count(self) -> int:
        """State variables and feedback constants together; further symbols of a proof start here."""
        return self.system.dimension + sum(block.size for block in self.system.exact)

    @cached_property
    def places(self) -> list[Place]:
        """Where each state variable sits."""
        arch = self.system.arch
        places: dict[int, Place] = {}
        for i in range(arch.depth):
            for (j, k), at in np.ndenumerate(arch.weight_at[i]):
                places[int(at)] = Place(i, j, k)
            bias = arch.bias_at[i]
            for j, at in enumerate([] if bias is None else bias):
                places[int(at)] = Place(i, j, None)
        for i, block in enumerate(self.moving_at):
            for (j, k), at in np.ndenumerate(block):
                places[int(at)] = Place(i, j, k, moving=True)
        return [places[at] for at in range(self.system.num_parameters)]

    def forced(self, number: int) -> Place | None:
        """The place whose update F drives this state variable: its own, or for a velocity its parameter's."""
        size, geometry = self.system.num_parameters, self.system.geometry
        start = size if geometry == "momentum" else 0
        return self.places[number - start] if start <= number < start + size else None

    def layers(self, monomials: Iterable[tuple[int, ...]]) -> set[int]:
        """The layers that monomials mention."""
        size, end = self.system.num_parameters, self.system.dimension - (self.system.geometry != "plain")
        return {self.places[n % size].layer for monomial in monomials for n in monomial if n < end}

    @cached_property
    def names(self) -> list[str]:
        """Every variable's name: ``W1[1,2]``, ``b1[1]``, ``B2[1,1]``, or ``D1[1,2]`` for direct rules."""
        names = self.system.arch.names()
        for i, block in enumerate(self.moving_at):
            names += [f"B{i + 1}[{j + 1},{k + 1}]" for j, k in np.ndindex(block.shape)]
        names += [f"v·{name}" for name in names] * (self.system.geometry == "momentum")
        names += ["e^t"] * (self.system.geometry != "plain")
        family = self.system.family
        for i, block in enumerate(self.system.exact):
            if family.source == "sign":
                names += [f"S{i + 1}[{j + 1},{k + 1}]" for j, k in np.ndindex(block.shape)]
                continue
            letter, layer = ("D", i) if family.direct else ("B", i + 1)
            names += [f"{letter}{layer}[{j + 1},{k + 1}]" for j, k in np.ndindex(block.shape)]
        return names

    def values(self, theta: Sequence[np.ndarray], B: Sequence[np.ndarray]) -> np.ndarray:
        """One vector with the value of every variable."""
        return np.concatenate([np.ravel(block) for block in (*theta, *B)])
