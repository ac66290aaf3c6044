"""Laws linear in the weights: what a softmax or a norm cannot see does not move."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lawful.affine.slices import Slices
from lawful.conservation.base import Law, Tensors
from lawful.conservation.combination import Moves


class ShiftLaw(Law):
    """Σ_j W[j, :] (and Σ_j b[j]) is constant where every error signal sums to zero over the channels j.

    With ``each`` the lines themselves are constant: the bias in front of a batch norm, the key bias of attention.
    """

    kind = "shift"

    def __init__(self, name: str, slices: Slices, source: str, *, each: bool = False, note: str = "") -> None:
        self.name, self.slices, self.source, self.note, self._each = name, slices, source, note, each
        self.parameters = (slices.parameter,)
        self.formula = slices.text if each else f"Σ_j {slices.text}"
        size = slices.count if each else self._lines_length()
        self.names = [f"{name} · {self.formula} {i}" for i in range(size)]

    def _lines_length(self) -> int:
        return torch.Size(self.slices.shape).numel() // self.slices.count

    def _of(self, tensor: torch.Tensor) -> torch.Tensor:
        lines = self.slices.lines(tensor)
        return lines.reshape(-1).double() if self._each else lines.sum(0, dtype=torch.float64)

    def value(self, theta: Tensors) -> torch.Tensor:
        """The sum of lines, or the lines."""
        return self._of(theta[self.slices.parameter])

    def rate(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """The same of the velocity."""
        return self._of(v[self.slices.parameter])

    def drift(self, theta: Tensors, delta: Tensors) -> torch.Tensor:
        """Zero: the law is linear."""
        return torch.zeros_like(self._of(delta[self.slices.parameter]))

    def expand(self, theta: Moves, delta: Moves, along: Sequence[Moves]) -> torch.Tensor:
        """No drift, and the sums of every direction."""
        name = self.slices.parameter
        zero = torch.zeros_like(self._of(theta[name].first))
        return torch.stack([zero, *(v[name].apply(self._of) if name in v else zero for v in along)])

    def magnitude(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """Sum of the absolute velocities."""
        return self._of(v[self.slices.parameter].abs())
