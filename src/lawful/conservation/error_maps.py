"""Constant linear maps between errors: δ at a layer's inputs is δ at its outputs times B, whatever the weights do.

Where B is constant in time this holds not only for products ⟨δ, a⟩ but for the errors themselves, and gives laws that
are linear in the weights: of biases (:mod:`lawful.conservation.bias`) and of the directions that a weight never moves
in (:mod:`lawful.conservation.range`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from lawful.affine.maps import AffineMap
from lawful.conservation.balance import Ids
from lawful.conservation.base import Tensors
from lawful.conservation.direct import DirectTrace, Tapped, is_linear, last_axis
from lawful.conservation.potential import Potential
from lawful.conservation.trace import Trace


@dataclass(frozen=True)
class Hop:
    """δ at the channels that a map reads = δ at ``onward`` times B.

    Args:
        reads: the map.
        onward: the channels whose error comes back through it.
        lines: parameters -> Bᵀ (inputs, outputs), live.
        parameter: the weight, or None for a direct hop from the logits.
        potentials: what B comes from.
        text: how a formula calls B.
    """

    reads: AffineMap
    onward: Ids
    lines: Callable[[Tensors], torch.Tensor]
    parameter: str | None
    potentials: tuple[Potential, ...]
    text: str


class FeedbackOf:
    """The hops of a finished run.

    Args:
        trace: the run.
        potential: parameter name -> its potential.
        theta: the parameters.
        direct: of a direct rule, what it did to the run.
        live: also feedback that moves, as for identities between velocities.
    """

    def __init__(
        self,
        trace: Trace,
        potential: Callable[[str], Potential],
        theta: Tensors,
        direct: DirectTrace | None,
        *,
        live: bool,
    ) -> None:
        self.trace, self.direct, self.live = trace, direct, live
        self.taps: Mapping[AffineMap, Tapped] = {} if direct is None else {tap.reads: tap for tap in direct.taps}
        self.theta = theta
        self._potential = potential
        self._hops: dict[AffineMap, list[Hop]] = {}

    def hops(self, reads: AffineMap) -> list[Hop]:
        """What is known of the errors that a map sends back: the first that leads somewhere is to be used."""
        if reads not in self._hops:
            tap = self.taps.get(reads)
            self._hops[reads] = self._of_layer(reads) if tap is None else self._of_tap(tap)
        return self._hops[reads]

    def once(self, amap: AffineMap) -> Ids | None:
        """The channels that a map writes, if it runs once and its weights have no other role and are learned."""
        uses = self.trace.writers.get(amap, ())
        free = amap not in self.trace.tied and not any(s.parameter in self.trace.loose for s in amap.slices)
        return uses[0] if len(uses) == 1 and free else None

    def _of_layer(self, amap: AffineMap) -> list[Hop]:
        onward, inputs = self.once(amap), self.trace.inputs.get(amap, ())
        if onward is None or len(inputs) != 1 or not is_linear(amap) or self.trace.padding.reaches(inputs[0]):
            return []
        into = amap.into
        assert into is not None
        psi, weight = self._potential(into.parameter), self.theta[into.parameter].double()
        if not (psi.linear if self.live else psi.constant(weight)):
            return []
        name = into.parameter
        text = name if into.window is None else f"{name}[{into.window[0]}:{into.window[1]}]"
        return [Hop(amap, onward, lambda theta: into.lines(psi.feedback(theta[name])), name, (psi,), f"B({text})")]

    def _of_tap(self, tap: Tapped) -> list[Hop]:
        """D from the logits, and M from a layer that stands for the readout."""
        direct, trace, found = self.direct, self.trace, []
        assert direct is not None
        if any(trace.padding.reaches(labels) for labels in trace.inputs.get(tap.reads, ())):
            return []
        line = last_axis(trace.labels(tap.logits))
        if line is not None and tap.logits.dim() == tap.passed.dim() and direct.sends_D(tap):
            found.append(Hop(tap.reads, line, lambda theta: direct.D(tap).T, None, (), f"D({tap.key})"))
        layer = direct.substitute(tap)
        onward = None if layer is None else self.once(layer[0])
        if layer is not None and onward is not None:
            into, psi = layer[0].into, layer[1]
            assert into is not None
            text = f"M({into.parameter})"
            name = into.parameter
            found.append(
                Hop(tap.reads, onward, lambda theta: into.lines(psi.feedback(theta[name])), name, (psi,), text)
            )
        return found


class Reads:
    """Who reads a channel.

    Args:
        trace: a finished run.
    """

    def __init__(self, trace: Trace) -> None:
        empty = np.zeros(0, dtype=np.int64)
        source = np.concatenate([empty, *(source for source, _, _, _ in trace.balance.reads)])
        order = np.argsort(source, kind="stable")
        self._source = source[order]
        self._into = np.concatenate([empty, *(into for _, into, _, _ in trace.balance.reads)])[order]
        self.size = trace.balance.size

    def of(self, channels: Ids) -> tuple[Ids, Ids]:
        """(which of ``channels``, the amount that a reader adds to its E), for every reader of each."""
        return joined(self._source, self._into, channels)


def joined(keys: Ids, values: Ids, queries: Ids) -> tuple[Ids, Ids]:
    """Every (position in ``queries``, value) with that key; ``keys`` sorted.

    >>> joined(np.array([1, 1, 4]), np.array([10, 11, 12]), np.array([4, 1]))
    (array([0, 1, 1]), array([12, 10, 11]))
    """
    low, high = np.searchsorted(keys, queries), np.searchsorted(keys, queries, side="right")
    counts = high - low
    which = np.repeat(np.arange(len(queries)), counts)
    offset = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    return which, values[low[which] + offset]
