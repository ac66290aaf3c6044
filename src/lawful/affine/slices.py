"""Slices of a parameter: which of its elements belong to which channel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch

BLOCK = 1 << 17
"""Elements in a block: small enough that what is computed from one stays in a core's cache."""


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
        """Sum of the squares of each line, (count,), without writing all the squares down."""
        return self.join([block.square(block(tensor)) for block in self.blocks()])

    def blocks(self) -> Iterator[Block]:
        """The parameter in pieces of about ``BLOCK`` elements, cut along the first axis longer than 1."""
        axis = next((axis for axis, size in enumerate(self.shape) if size > 1), 0)
        length = max(1, BLOCK * self.shape[axis] // max(1, prod(self.shape)))
        for start in range(0, self.shape[axis], length):
            yield Block(self, axis, start, min(length, self.shape[axis] - start))

    def join(self, pieces: list[torch.Tensor]) -> torch.Tensor:
        """(…, count) from the line sums of all blocks, in order: a block holds whole lines, or a part of every line."""
        if len(pieces) == 1:
            return pieces[0]
        whole = next(axis for axis, size in enumerate(self.shape) if size > 1) in self.keep
        return torch.cat(pieces, dim=-1) if whole else torch.stack(pieces).sum(0)

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


@dataclass(frozen=True)
class Block:
    """A piece of a parameter: [start, start + length) of one axis of its view."""

    slices: Slices
    axis: int
    start: int
    length: int

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """This piece of a tensor of the parameter's shape, in the axes of the view; half precision becomes float32."""
        shape, window = self.slices.shape, self.slices.window
        rows = tensor if window is None else tensor[window[0] : window[1]]
        each, rest = divmod(rows.shape[0], shape[self.axis]) if rows.dim() else (0, 1)
        if each and not rest:  # cut first: a tensor that is not contiguous is then copied a piece at a time
            piece = rows.narrow(0, each * self.start, each * self.length)
            piece = piece.reshape(*shape[: self.axis], self.length, *shape[self.axis + 1 :])
        else:
            piece = rows.reshape(shape).narrow(self.axis, self.start, self.length)
        return piece.float() if piece.dtype in (torch.float16, torch.bfloat16) else piece

    @property
    def _rest(self) -> list[int]:
        return [axis for axis in range(len(self.slices.shape)) if axis not in self.slices.keep]

    def sum(self, piece: torch.Tensor) -> torch.Tensor:
        """What a piece adds to each line that it reaches."""
        return (piece.sum(self._rest) if self._rest else piece).reshape(-1)

    def square(self, piece: torch.Tensor) -> torch.Tensor:
        """What the squares of a piece add to each line that it reaches."""
        rest = self._rest
        if rest and rest[0] == piece.dim() - len(rest):  # along the lines in memory the norm needs no square written
            return torch.linalg.vector_norm(piece, dim=rest).square().reshape(-1)
        return self.sum(piece * piece)


def vector(parameter: str, size: int, window: tuple[int, int] | None = None, part: str = "") -> Slices:
    """The lines of a bias, or of a norm's scale: one element per channel."""
    return Slices(parameter, (size,), (0,), "[j]", window, part)
