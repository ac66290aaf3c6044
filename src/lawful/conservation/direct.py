"""Direct rules in a trace: a tap reads its block through a virtual readout; real layers that move like it replace it.

A layer c that reads the tapped features themselves has Ẇ_c = −δ_cᵀa. It stands for the virtual readout, with feedback
M, wherever δ_c M is the block's signal:

- the output layer: δ_c = e, so M = D_i and its law is that of feedback alignment;
- the next tapped layer, if it is linear up to its tap: δ_c = signal_{i+1}(e), so D_{i+1} M = D_i (solvable whenever
  D_{i+1} has full row rank).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from lawful.affine.maps import AffineMap
from lawful.affine.slices import Slices
from lawful.attachment.direct import DirectAttachment
from lawful.conservation.balance import Ids
from lawful.conservation.potential import Potential
from lawful.conservation.readout import Readout, readout_name
from lawful.conservation.taps import Cut
from lawful.conservation.trace import Trace
from lawful.rules.feedback_alignment import FeedbackAlignment
from lawful.types import State

EXACT: Final = 1e-9
"""Relative size of what is left of a signal when it is not exactly a linear image."""


@dataclass(frozen=True)
class Tapped:
    """One tap in the run.

    Args:
        key: its name in the attachment.
        reads: the virtual readout as a map that reads the block's features.
        output: what the block computed.
        passed: labels of the features behind the cut, (positions …, features).
        logits: what taught it.
    """

    key: str
    reads: AffineMap
    output: torch.Tensor
    passed: torch.Tensor
    logits: torch.Tensor

    @property
    def outputs(self) -> int:
        """Number of components of e."""
        assert self.reads.into is not None
        return self.reads.into.shape[0]


def is_linear(amap: AffineMap) -> bool:
    """Whether a map is a matrix product, position by position: no convolution, lookup, scale or product of inputs."""
    if amap.into is None or amap.out is None or len(amap.into.shape) != 2:
        return False
    return {amap.into.keep, amap.out.keep} == {(0,), (1,)}


class DirectTrace:
    """A :class:`lawful.conservation.taps.Watcher` of labels.

    Args:
        attachment: the direct rule on the model.
        trace: the run being followed.
        softmax: errors at outputs that a softmax reads sum to zero.
    """

    def __init__(self, attachment: DirectAttachment, trace: Trace, *, softmax: bool = False) -> None:
        self.attachment, self._trace, self._softmax = attachment, trace, softmax
        self.taps: list[Tapped] = []
        self._passed: dict[str, torch.Tensor] = {}

    # -- the run -------------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """What the attachment's hooks do is told here, not followed."""
        self._trace.paused += 1

    def note(self, output: torch.Tensor) -> torch.Tensor | None:
        """The channels of a block's output."""
        return self._trace.labels(output)

    def cut(self, cut: Cut, passed: Any) -> None:
        """Behind the cut every feature has a name of its own."""
        for tensor in tree_leaves(passed):
            if isinstance(tensor, torch.Tensor):
                self._trace.label(tensor, None)
        if cut.output.requires_grad:
            own = _features(cut.output.shape, self.attachment.feedback_of(cut.key).shape[1])
            self._passed[cut.key] = self._trace.unheard(own).expand(cut.output.shape)
            self._trace.label(tree_leaves(passed)[0], self._passed[cut.key])
        self._trace.paused -= 1

    def teach(self, cuts: list[Cut], logits: torch.Tensor, taught: torch.Tensor) -> None:
        """The virtual readouts read their blocks."""
        if taught is not logits:
            self._trace.label(taught, self._trace.labels(logits))
        for cut in cuts:
            lead = cut.output.shape[: self.attachment.positions(cut.key, cut.output, logits)]
            outputs, features = self.attachment.feedback_of(cut.key).shape
            reads = AffineMap(None, Slices(readout_name(cut.key), (outputs, features), (1,), "[:, j]"))
            if cut.note is not None:
                self._trace.read_lines(reads, cut.note.reshape(*lead, features), -1)
            passed = self._passed[cut.key].reshape(*lead, features)
            self.taps.append(Tapped(cut.key, reads, cut.output, passed, logits))
        self._trace.paused -= 1

    # -- afterwards ----------------------------------------------------------------------------------------------------

    def readout(self, tap: Tapped) -> Readout:
        """The stand-in for the potential of a tap's virtual readout."""
        return Readout(tap.key, self.attachment.rules[tap.key])

    def signal(self, tap: Tapped, error: torch.Tensor) -> torch.Tensor:
        """The rule's signal of some errors (n, outputs), in float64."""
        return self.attachment.rules[tap.key].signal(error, _double(self.attachment.state(tap.key)))

    def errors(self, tap: Tapped, seed: int) -> torch.Tensor:
        """Random error signals (n, outputs), enough of them to span all there are."""
        generator = torch.Generator().manual_seed(seed)
        error = torch.randn(2 * tap.outputs + 4, tap.outputs, generator=generator, dtype=torch.float64)
        error = error.to(tap.output.device)
        return error - error.mean(-1, keepdim=True) if self._centred(tap) else error

    def _centred(self, tap: Tapped) -> bool:
        line = last_axis(self._trace.labels(tap.logits))
        seen = (sight.line for sight in self._trace.norms if sight.what == "softmax output")
        return self._softmax and line is not None and any(np.array_equal(ids, line) for ids in seen)

    def sends_D(self, tap: Tapped) -> bool:  # noqa: N802 - D is the letter of the mathematics
        """Whether the signal is e D."""
        error = self.errors(tap, 0)
        return _equal(self.signal(tap, error), error @ self.D(tap))

    def D(self, tap: Tapped) -> torch.Tensor:  # noqa: N802
        """The live D in float64, (outputs, features)."""
        return self.attachment.feedback_of(tap.key).double()

    def substitute(self, tap: Tapped) -> tuple[AffineMap, Potential] | None:
        """The real layer that moves like a tap's virtual readout, and ⟨M, W⟩ as its potential; None without one."""
        for amap, uses in self._trace.applied.items():
            inputs = self._trace.inputs.get(amap, ())
            if len(uses) > 1 or len(inputs) != 1 or amap in self._trace.tied or not is_linear(amap):
                continue
            if inputs[0].shape == tap.passed.shape and bool((inputs[0] == tap.passed).all()):
                feedback = self._feedback(tap, amap, uses[0][1])
                if feedback is not None:
                    return amap, Potential(FeedbackAlignment(), _Oriented(feedback, amap))
        return None

    def _feedback(self, tap: Tapped, amap: AffineMap, out: torch.Tensor) -> Callable[[], torch.Tensor] | None:
        """M, live, where δ at the layer's output times M is the tap's signal."""
        lead = tap.passed.dim() - 1
        if out is tap.logits:
            sent = out.dim() - 1 == lead and self.sends_D(tap)
            return (lambda: self.attachment.feedback_of(tap.key)) if sent else None
        for other in self.taps:
            alone = other.output is out and other.passed.shape[:-1] == tap.passed.shape[:-1]
            if alone and other.logits is tap.logits and self._hears_only(amap, other):
                solve = _Solution(self, tap, other)
                error = self.errors(tap, 1)
                if _equal(self.signal(other, error) @ solve(), self.signal(tap, error)):
                    return solve
        return None

    def _hears_only(self, amap: AffineMap, tap: Tapped) -> bool:
        """Whether the outputs of a layer are the features of a tap, and nobody else reads them."""
        (ids,) = self._trace.writers[amap]
        (line, amounts), *more = self._trace.alone.get(tap.reads, [(np.zeros(0), np.zeros(0))])
        if more or len(line) != len(ids) or not np.array_equal(np.sort(line), np.arange(len(ids))):
            return False
        return not self._others_read(ids, amounts)

    def _others_read(self, ids: Ids, amounts: Ids) -> bool:
        spoiled = any(i in self._trace.balance.reasons for i in ids.tolist())
        return spoiled or any(
            bool((np.isin(source, ids) & ~np.isin(into, amounts)).any())
            for source, into, _, _ in self._trace.balance.reads
        )


class _Solution:
    """M with signal_{i+1} M = signal_i, of smallest norm; solved again when a D is written into or replaced."""

    def __init__(self, trace: DirectTrace, tap: Tapped, following: Tapped) -> None:
        self._trace, self._tap, self._following = trace, tap, following
        self._seen: list[tuple[torch.Tensor, int]] = []
        self._M = torch.zeros(0)

    def __call__(self) -> torch.Tensor:
        """M (out_{i+1}, out_i)."""
        states = [self._trace.attachment.state(tap.key) for tap in (self._tap, self._following)]
        now = [(tensor, tensor._version) for state in states for tensor in state.values()]
        if not _same(now, self._seen):
            taps = (self._following, self._tap)
            error = self._trace.errors(self._tap, 2)
            above, below = (self._trace.signal(tap, error) for tap in taps)
            self._seen, self._M = now, torch.linalg.pinv(above) @ below
        return self._M


def _same(now: Sequence[tuple[torch.Tensor, int]], before: Sequence[tuple[torch.Tensor, int]]) -> bool:
    """Whether these are the same tensors, not written to since."""
    return len(now) == len(before) and all(
        x is y and version == old for (x, version), (y, old) in zip(now, before, strict=True)
    )


@dataclass(frozen=True)
class _Oriented:
    """A feedback M (out, in) as the state of the rule of a weight, which may be stored as (in, out)."""

    feedback: Callable[[], torch.Tensor]
    amap: AffineMap

    def __call__(self) -> State:
        assert self.amap.into is not None
        M = self.feedback()
        return {"B": M if self.amap.into.keep == (1,) else M.T}


def _features(shape: torch.Size, count: int) -> torch.Size:
    """The trailing axes that hold so many features; all of them where none do, which the attachment refuses itself."""
    return next((shape[k:] for k in reversed(range(len(shape) + 1)) if shape[k:].numel() == count), shape)


def last_axis(labels: torch.Tensor | None) -> Ids | None:
    """The channel of each index of the last axis, where it is the same at every position."""
    if labels is None:
        return None
    line = labels.reshape(-1, labels.shape[-1])
    return line[0].numpy() if bool((line == line[:1]).all()) else None


def _double(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: t.double() if t.is_floating_point() else t for key, t in state.items()}


def _equal(one: torch.Tensor, two: torch.Tensor) -> bool:
    return bool((one - two).norm() <= EXACT * two.norm())
