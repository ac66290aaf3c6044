"""Where a direct rule cuts a running model: what each tap saw, what it let pass, and the logits that teach it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lawful.attachment.direct import DirectAttachment


@dataclass(frozen=True)
class Cut:
    """One call of a tapped block.

    Args:
        key: the tap's name in the attachment, "blocks.0" or, from the second call of a shared block on, "blocks.0#1".
        output: what the block computed, with its graph: the signal arrives here.
        note: what the watcher noted when the block had run, before the next one could change the output in place.
    """

    key: str
    output: torch.Tensor
    note: Any


class Watcher(Protocol):
    """What looks on while a tapped model runs."""

    def pause(self) -> None:
        """The attachment's own hook is about to run at a tap or at the logits."""

    def note(self, output: torch.Tensor) -> Any:
        """What to remember of a block's output."""

    def cut(self, cut: Cut, passed: Any) -> None:
        """The attachment's hook has cut the block off; ``passed`` is what the next block gets."""

    def teach(self, cuts: list[Cut], logits: torch.Tensor, taught: torch.Tensor) -> None:
        """The logits came: ``taught`` are the same numbers, tied to these blocks."""


@contextmanager
def watched(attachment: DirectAttachment, watcher: Watcher) -> Iterator[None]:
    """Hooks around the attachment's own ones at every tap and at the logits, for one or more runs of the model."""
    run = _Run(attachment, watcher)
    with ExitStack() as stack:
        for handle in run.hooks():
            stack.callback(handle.remove)
        yield


class _Run:
    def __init__(self, attachment: DirectAttachment, watcher: Watcher) -> None:
        self._attachment, self._watcher = attachment, watcher
        self._calls: dict[str, int] | None = None
        self._cuts: list[Cut] = []
        self._open: list[torch.Tensor] = []

    def hooks(self) -> Iterator[RemovableHandle]:
        model = self._attachment.model
        yield model.register_forward_pre_hook(self._start)
        yield model.register_forward_hook(self._end)
        for tap in self._attachment.taps:
            module = model.get_submodule(tap)
            yield module.register_forward_hook(self._enter, prepend=True)
            yield module.register_forward_hook(self._cut(tap))
        logits = model.get_submodule(self._attachment.output)
        yield logits.register_forward_hook(self._enter, prepend=True)
        yield logits.register_forward_hook(self._teach)

    def _start(self, module: nn.Module, args: Any) -> None:
        self._calls, self._cuts = {}, []

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._calls = None  # a checkpointed block that runs again in the backward pass is no new one

    def _enter(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._calls is not None:
            self._open.append(output if isinstance(output, torch.Tensor) else output[0])
            self._watcher.pause()

    def _cut(self, tap: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._calls is None:
                return
            call = self._calls[tap] = self._calls.get(tap, -1) + 1
            whole = self._open.pop()
            cut = Cut(f"{tap}#{call}" if call else tap, whole, self._watcher.note(whole))
            self._watcher.cut(cut, output)
            if whole.requires_grad:
                self._cuts.append(cut)

        return hook

    def _teach(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._calls is not None:
            cuts, self._cuts = self._cuts, []
            self._watcher.teach(cuts, self._open.pop(), output)
