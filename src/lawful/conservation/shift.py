"""Laws linear in the weights: what a softmax or a norm cannot see does not move."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lawful.affine.slices import Slices
from lawful.conservation.base import Law, Tensors
from lawful.conservation.combination import Combination, Moves, values


class ShiftLaw(Law):
    """Σ_{j in part} W[j, :], or of b[j], is constant where every error signal sums to zero over the channels of a part.

    With every channel a part of its own the lines themselves are constant: the bias in front of a batch norm, the key
    bias of attention.

    Args:
        name: where it lives.
        slices: the lines j of a parameter.
        source: who stated it.
        part: (lines,) which part a line belongs to, counted from 0; −1 for lines without a law. All in one: None.
        note: see :class:`Law`.
    """

    kind = "shift"

    def __init__(
        self, name: str, slices: Slices, source: str, part: np.ndarray | None = None, *, note: str = ""
    ) -> None:
        self.name, self.slices, self.source, self.note = name, slices, source, note
        self.parameters = (slices.parameter,)
        part = np.zeros(slices.count, dtype=np.int64) if part is None else part
        self._part, self._parts = torch.from_numpy(part), int(part.max()) + 1
        self._whole = not part.any()
        members = [np.nonzero(part == p)[0].tolist() for p in range(self._parts)]
        if all(len(lines) == 1 for lines in members):
            self.formula = slices.text
            parts = [slices.text.replace("j]", f"{j}]") for (j,) in members]
        else:
            whole = self._parts == 1
            self.formula = f"Σ_j {slices.text}" + ("" if whole else " per group")
            parts = [f"Σ_j {slices.text}" + ("" if whole else f" from j = {lines[0]}") for lines in members]
        length = torch.Size(slices.shape).numel() // slices.count
        entries = [""] if length == 1 else [f", entry {i}" for i in range(length)]
        self.names = [f"{name} · {part}{entry}" for part in parts for entry in entries]

    def _of(self, tensor: torch.Tensor) -> torch.Tensor:
        lines, part = self.slices.lines(tensor), self._part.to(tensor.device)
        if self._whole:
            return lines.sum(0, dtype=torch.float64)
        lines = lines.double()
        sums = lines.new_zeros(self._parts + 1, lines.shape[1]).index_add(0, part % (self._parts + 1), lines)
        return sums[: self._parts].reshape(-1)

    def value(self, theta: Tensors) -> torch.Tensor:
        """The sums of lines, (parts · length of a line,)."""
        return self._of(theta[self.slices.parameter])

    def rate(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """The same of the velocity."""
        return self._of(v[self.slices.parameter])

    def drift(self, theta: Tensors, delta: Tensors) -> torch.Tensor:
        """Zero: the law is linear."""
        return torch.zeros_like(self._of(delta[self.slices.parameter]))

    def expand(self, theta: Moves, delta: Moves, along: Sequence[Moves]) -> torch.Tensor:
        """No drift, and the sums of every direction."""
        name, nothing = self.slices.parameter, Combination()
        moved = [v.get(name, nothing) for v in along]
        if not any(moved):
            return theta[name].first.new_zeros(1 + len(along), len(self.names), dtype=torch.float64)
        return values(self._of, [nothing, *moved])

    def magnitude(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """Sums of the absolute velocities."""
        return self._of(v[self.slices.parameter].abs())
