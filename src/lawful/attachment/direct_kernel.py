"""One autograd Function at the logits: its backward pass hands every tapped block its signal, in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import Function

from lawful.attachment.guard import final

Signal = Callable[..., torch.Tensor]
"""``DirectRule.signal(error, state)``."""


@dataclass(frozen=True)
class Tap:
    """How one tapped block reads the output error.

    Args:
        signal: the rule's formula.
        keys: names of the state's tensors, in the order in which they are handed over.
        positions: number of leading axes (batch, time) that block and logits share; the rest is flattened.
        shape: of the block's output.
        dtype: of the block's output.
    """

    signal: Signal
    keys: tuple[str, ...]
    positions: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __call__(self, error: torch.Tensor, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The signal, in the block's shape."""
        flat = error.reshape(error.shape[: self.positions].numel(), -1)
        dtype = next((tensor.dtype for tensor in state.values()), self.dtype)
        return self.signal(flat.to(dtype), state).to(self.dtype).reshape(self.shape)


def _compute(taps: Sequence[Tap], needs: Sequence[bool]) -> Callable[..., tuple[torch.Tensor | None, ...]]:
    def compute(error: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        left = iter(tensors[len(taps) :])
        states = [{key: next(left) for key in tap.keys} for tap in taps]
        return error, *(t(error, s) if needed else None for t, s, needed in zip(taps, states, needs, strict=True))

    return compute


class _Inject(Function):
    """Logits in, logits out; back: (e, signal(e, D_1), …, signal(e, D_L))."""

    @staticmethod
    def forward(ctx: Any, taps: Any, logits: Any, *tensors: Any) -> torch.Tensor:
        ctx.taps = taps
        # Not save_for_backward: a checkpointed region that holds the logits would have to save them again when it is
        # recomputed. They are buffers that live anyway, and empty anchors.
        ctx.tensors = tensors[len(taps) :]
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, error: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _gradients(ctx, error, ctx.tensors)


class _InjectTransformed(Function):
    """The same under ``torch.func`` and ``torch.compile``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(taps: Any, logits: Any, *tensors: Any) -> torch.Tensor:
        return logits.view_as(logits)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        taps, _, *tensors = inputs
        ctx.taps = taps
        ctx.save_for_backward(*tensors[len(taps) :])

    @staticmethod
    def backward(ctx: Any, error: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _gradients(ctx, error, ctx.saved_tensors)


def _gradients(ctx: Any, error: torch.Tensor, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
    back = final(_compute(ctx.taps, ctx.needs_input_grad[2 : 2 + len(ctx.taps)]), error, *tensors)
    return (None, *back, *[None] * len(tensors))


def inject(
    logits: torch.Tensor, taps: Sequence[Tap], outputs: Sequence[torch.Tensor], states: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The logits, bitwise; when their error comes back, each block's ``output`` receives its tap's signal.

    Args:
        logits: (…, outputs).
        taps: one per block.
        outputs: the blocks' outputs with their graphs.
        states: the taps' state tensors, one after the other.
    """
    # Empty, so free of charge, but with each block's graph: a second derivative must meet the guard on its way there.
    # The outputs themselves cannot be saved, for the next block may legally change them in place.
    anchors = [output[:0].clone() for output in outputs]
    transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    function = _InjectTransformed if transformed else _Inject
    return function.apply(tuple(taps), logits, *outputs, *anchors, *states)  # pyright: ignore[reportReturnType]
