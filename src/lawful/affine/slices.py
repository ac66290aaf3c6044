"""Slices of a parameter: which of its elements belong to which channel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import lcm, prod
from string import ascii_letters

import numpy as np
import torch
from torch.autograd import forward_ad

ROWS = 4096
"""The most rows in a block of a parameter."""

LARGE = 1 << 17
"""Elements of a block from which on a call of numpy's einsum pays."""


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
        viewed = self.view(tensor)
        return (viewed.sum(self._rest) if self._rest else viewed).reshape(-1)

    @cached_property
    def _axis(self) -> int:
        """The first axis longer than 1: to cut along it is to cut along the rows of the parameter."""
        return next((axis for axis, size in enumerate(self.shape) if size > 1), 0)

    def quantum(self, rows: int) -> int:
        """How many rows of the parameter make one index of the first axis; all of them if it does not divide them."""
        each, rest = divmod(rows, self.shape[self._axis])
        return rows if rest or not each else each

    @cached_property
    def _rest(self) -> list[int]:
        """The axes that a line runs along."""
        return [axis for axis in range(len(self.shape)) if axis not in self.keep]

    def _folded(self, block: torch.Tensor, rows: int) -> torch.Tensor:
        """A block of the parameter's rows in the axes of the view."""
        shape = self.shape
        if block.dim() and block.shape[0] < rows:
            cut = block.shape[0] // self.quantum(rows)
            shape = (*shape[: self._axis], cut, *shape[self._axis + 1 :])
        return block if block.shape == shape else block.reshape(shape)

    def sum_block(self, block: torch.Tensor, rows: int) -> torch.Tensor:
        """What a block of the ``rows`` rows adds to each line that it reaches."""
        block = self._folded(block, rows)
        return (block.sum(self._rest) if self._rest else block).reshape(-1)

    def dot_block(self, x: torch.Tensor, y: torch.Tensor, rows: int) -> torch.Tensor:
        """What ⟨x, y⟩ of a block adds to each line that it reaches.

        Large blocks are read once, and x ⊙ y is not written: on the CPU, torch has nothing that would do that. (numpy
        adds up naively: :data:`ROWS` keeps that exact enough.)
        """
        if x is y and self.is_contiguous:
            return self.norm_block(x, rows).square()
        if x.numel() < LARGE or not (is_readable(x) and is_readable(y)):
            return self.sum_block(x * y, rows)
        x, y = self._folded(x, rows), self._folded(y, rows)
        return torch.from_numpy(np.asarray(np.einsum(self._dot, x.detach().numpy(), y.detach().numpy()))).reshape(-1)

    @cached_property
    def _dot(self) -> str:
        """What einsum calls the inner product of two tensors along every line."""
        axes = ascii_letters[: len(self.shape)]
        return f"{axes},{axes}->{''.join(axes[axis] for axis in self.keep)}"

    def norm_block(self, block: torch.Tensor, rows: int) -> torch.Tensor:
        """What its square is: the norms of a block's lines, or (up to the sign) the element where a line is one."""
        if not self.is_contiguous:
            return self.dot_block(block, block, rows).sqrt()
        block = self._folded(block, rows)
        norms = torch.linalg.vector_norm(block, dim=self._rest) if self._rest else block
        return norms if norms.dim() == 1 else norms.reshape(-1)

    @cached_property
    def is_contiguous(self) -> bool:
        """Whether lines lie in memory one after the other: torch has a fast norm for these."""
        return bool(self.keep) and self.keep == tuple(range(len(self.keep)))

    @cached_property
    def by_row(self) -> bool:
        """Whether a line is a row of :attr:`matrix`; else it is a column, or some that are adjacent."""
        return self.is_contiguous and self.count < prod(self.shape)

    @cached_property
    def matrix(self) -> Matrix | None:
        """The same elements in the same order as a matrix whose rows are lines, or whose columns make lines up.

        None if there is none. Where a line is one element, the matrix is one row.
        """
        size, axes = prod(self.shape), [axis for axis, length in enumerate(self.shape) if length > 1]
        kept = [k for k, axis in enumerate(axes) if axis in self.keep]
        if not size or not kept or kept != list(range(kept[0], kept[0] + len(kept))):
            return None
        height = self.count if self.by_row else prod(self.shape[: axes[kept[0]]])
        return Matrix(height, size // height)

    def join(self, blocks: Sequence[torch.Tensor]) -> torch.Tensor:
        """(…, count) in float64 from the sums of all blocks, in order: a block holds whole lines or a part of each."""
        if len(blocks) == 1:
            return blocks[0].double()
        whole = self._axis in self.keep
        return torch.cat(list(blocks), -1).double() if whole else torch.stack(list(blocks)).sum(0, dtype=torch.float64)

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
class Matrix:
    """How many rows and columns."""

    height: int
    width: int


@dataclass(frozen=True)
class Rows:
    """Rows [start, stop) of a parameter."""

    start: int
    stop: int

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """These rows of a tensor of the parameter's shape; half precision becomes float32."""
        whole = not tensor.dim() or (self.start == 0 and self.stop >= tensor.shape[0])
        block = tensor if whole else tensor[self.start : self.stop]
        return block.float() if block.dtype in (torch.float16, torch.bfloat16) else block


def is_readable(x: torch.Tensor) -> bool:
    """Whether its numbers are all there is to it: :func:`is_plain`, and nothing is to be differentiated."""
    return is_plain(x) and not (x.requires_grad and torch.is_grad_enabled()) and not is_transformed()


def is_plain(x: torch.Tensor) -> bool:
    """Whether it lies in this memory, element by element."""
    return (
        type(x) in (torch.Tensor, torch.nn.Parameter)
        and x.is_cpu
        and x.layout is torch.strided
        and not (x.is_neg() or x._is_zerotensor())
    )


def is_transformed() -> bool:
    """Whether a function is being differentiated forwards, or transformed by torch.func."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def row_count(slices: Slices, shape: torch.Size) -> int:
    """How many rows the slices look at, of a parameter of this shape."""
    window = (0, shape[0] if shape else 1) if slices.window is None else slices.window
    return window[1] - window[0]


def row_blocks(together: Sequence[Slices], shape: torch.Size, size: int) -> Iterator[Rows]:
    """The rows that slices of one window look at, if any do, in blocks that suit all, of ``size`` elements or so."""
    if not together:
        return
    start = 0 if together[0].window is None else together[0].window[0]
    rows = row_count(together[0], shape)
    quantum = lcm(*(slices.quantum(rows) for slices in together))
    length = max(1, min(ROWS, size // max(1, shape[1:].numel())) // quantum) * quantum
    for first in range(0, rows, length):
        yield Rows(start + first, start + min(rows, first + length))


def vector(parameter: str, size: int, window: tuple[int, int] | None = None, part: str = "") -> Slices:
    """The lines of a bias, or of a norm's scale: one element per channel."""
    return Slices(parameter, (size,), (0,), "[j]", window, part)
