"""Slices of a parameter: which of its elements belong to which channel."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch


@dataclass(frozen=True)
class Slices:
    """The lines of a parameter: one line is everything it holds at one index of the axes ``keep``.

    A linear layer W (out, in) has the lines W[j, :] (``keep=(0,)``), one per output channel, and W[:, j]
    (``keep=(1,)``), one per input channel. Grouped and transposed convolutions are viewed in more axes first.

    Args:
        parameter: the dotted name.
        shape: the axes the (windowed) parameter is viewed in.
        keep: the axes whose index names a line; lines are numbered in row-major order over them.
        letter: how a formula writes the line, "[j]" or "[:, j]".
        window: rows [start, stop) of a packed parameter, such as Q in the QKV projection.
        part: what the packed rows are called, "query".
    """

    parameter: str
    shape: tuple[int, ...]
    keep: tuple[int, ...]
    letter: str = "[j]"
    window: tuple[int, int] | None = None
    part: str = ""

    @property
    def site(self) -> str:
        """Dotted name of the module (and its part) that the parameter belongs to."""
        module = self.parameter.rpartition(".")[0] or self.parameter
        return f"{module}.{self.part}" if self.part else module

    @property
    def count(self) -> int:
        """Number of lines."""
        return prod(self.shape[axis] for axis in self.keep)

    @property
    def text(self) -> str:
        """As a formula writes it: ``fc1.weight[j]``, ``attn.in_proj_weight[0:16][j]``."""
        rows = "" if self.window is None else f"[{self.window[0]}:{self.window[1]}]"
        return f"{self.parameter}{rows}{self.letter}"

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor of the parameter's shape in the axes ``shape``."""
        rows = tensor if self.window is None else tensor[self.window[0] : self.window[1]]
        return rows.reshape(self.shape)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of each line, (count,), of a tensor of the parameter's shape.

        >>> Slices("w", (2, 3), (1,)).sum(torch.ones(2, 3)).tolist()
        [2.0, 2.0, 2.0]
        """
        rest = [axis for axis in range(len(self.shape)) if axis not in self.keep]
        viewed = self.view(tensor)
        return (viewed.sum(rest) if rest else viewed).reshape(-1)

    def square(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of the squares of each line, (count,), without writing the squares down."""
        rest = [axis for axis in range(len(self.shape)) if axis not in self.keep]
        viewed = self.view(tensor)
        return (torch.linalg.vector_norm(viewed, dim=rest) if rest else viewed).square().reshape(-1)

    def lines(self, tensor: torch.Tensor) -> torch.Tensor:
        """The lines as rows, (count, length), of a tensor of the parameter's shape."""
        return self.view(tensor).movedim(self.keep, tuple(range(len(self.keep)))).reshape(self.count, -1)

    def overlaps(self, other: Slices) -> bool:
        """Whether the two read common elements of one parameter (windows that are disjoint do not)."""
        if self.parameter != other.parameter:
            return False
        if self.window is None or other.window is None:
            return True
        return self.window[0] < other.window[1] and other.window[0] < self.window[1]


def vector(parameter: str, size: int, window: tuple[int, int] | None = None, part: str = "") -> Slices:
    """The lines of a bias, or of a norm's scale: one element per channel."""
    return Slices(parameter, (size,), (0,), "[j]", window, part)
