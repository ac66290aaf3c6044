"""Shift and scale laws: what a softmax or a norm downstream cannot see.

A writer whose channels are read only by things that do not see a common shift of them receives errors with
Σ_j δ_j = 0 at every position, so Σ_j W[j, :] and Σ_j b[j] stay. A batch norm, and the scores' softmax for keys, do
not see a shift of one channel over all positions, so b[j] itself stays. Both hold under every feedback rule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from lawful.affine.maps import AffineMap
from lawful.conservation.balance import Ids
from lawful.conservation.base import Law
from lawful.conservation.shift import ShiftLaw
from lawful.conservation.trace import Trace

_TANAKA = "Kunin et al. 2021, translation symmetry; here under any feedback"

CHANNELS = frozenset({"softmax output", "layer norm"})
"""What is blind to a common shift of all channels at each position."""
POSITIONS = frozenset({"batch norm", "keys"})
"""What is blind to a shift of one channel at all positions."""


class Blindness:
    """Who reads a set of channels, as far as shifts are concerned.

    Args:
        trace: a finished run.
    """

    def __init__(self, trace: Trace) -> None:
        self._balance = trace.balance
        self._reads: dict[int, list[tuple[int, bool]]] = defaultdict(list)
        for source, into, plain in trace.balance.plain_reads():
            for s, t in zip(source.tolist(), into.tolist(), strict=True):
                self._reads[s].append((t, plain))
        self._onward = {
            s: t for source, into in trace.balance.links for s, t in zip(source.tolist(), into.tolist(), strict=True)
        }
        self._scores = trace.score_amounts
        self._lines: dict[str, list[frozenset[int]]] = defaultdict(list)
        self._eyes: dict[int, set[str]] = defaultdict(set)
        for what, line in trace.norms:
            self._lines[what].append(frozenset(line.tolist()))
            for i in line.tolist():
                self._eyes[i].add(what)

    def holds(self, ids: Ids, blind: frozenset[str]) -> bool:
        """Whether every reader of the channels ``ids``, now or after sums and masks of nothing, is one of ``blind``."""
        front, seen = [frozenset(ids.tolist())], set()
        while front:
            group = front.pop()
            if group in seen:
                continue
            seen.add(group)
            if not self._spoiled_by(group, blind):
                return False
            onward = [self._targets(i, blind) for i in group]
            if any(targets is None for targets in onward) or len({len(t) for t in onward if t is not None}) > 1:
                return False
            columns = zip(*(t for t in onward if t is not None), strict=True)
            for column in columns:
                if len(set(column)) < len(column):
                    return False
                front.append(frozenset(column))
        return True

    def _spoiled_by(self, group: frozenset[int], blind: frozenset[str]) -> bool:
        """Nothing but the blind looks at these channels from outside the balance; and it looks at them all."""
        for i in group:
            foreign = {why for why in self._balance.reasons.get(i, ()) if why not in BLIND_REASONS}
            if foreign or not self._eyes[i] <= blind:
                return False
        if blind is POSITIONS:
            return True
        return all(any(group == line for line in self._lines[what]) for i in group for what in self._eyes[i])

    def _targets(self, i: int, blind: frozenset[str]) -> list[int] | None:
        """Channels that this one is copied or added into; None when a reader does something else with it."""
        targets = []
        for t, plain in self._reads[i]:
            if self._balance.is_blind(t) or (blind is POSITIONS and t in self._scores):
                continue
            onward = t if self._balance.is_activation(t) else self._onward.get(t)
            if onward is None or not plain:
                return None
            targets.append(onward)
        return sorted(targets) if targets or self._eyes[i] else None


BLIND_REASONS = frozenset({"layer norm mixes its channels", "it is an output"})
"""Why a balance is spoiled by readers that :class:`Blindness` knows about itself."""


def shift_laws(trace: Trace) -> Iterator[Law]:
    """Shift laws of every writer."""
    eyes = Blindness(trace)
    for amap, uses in trace.writers.items():
        if amap in trace.tied:
            continue
        if all(eyes.holds(ids, CHANNELS) for ids in uses):
            yield from _summed(amap)
        if amap.bias is not None and all(eyes.holds(ids, POSITIONS) for ids in uses):
            yield ShiftLaw(amap.bias.site, amap.bias, _TANAKA, each=True)


def _summed(amap: AffineMap) -> Iterator[Law]:
    if amap.out is not None and amap.groups == 1:
        yield ShiftLaw(amap.out.site, amap.out, _TANAKA)
    if amap.bias is not None:
        yield ShiftLaw(amap.bias.site, amap.bias, _TANAKA)
