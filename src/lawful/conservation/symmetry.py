"""Shift laws: what a softmax or a norm downstream cannot see.

A set S of a writer's channels whose readers do not see a common shift of them receives errors with Σ_{j in S} δ_j = 0:
at every position if they see no shift at any position by itself (softmax over classes, layer norm), so that
Σ_{j in S} W[j, :] and Σ_{j in S} b[j] stay; over all positions together if they see no shift common to the positions
(batch norm and the scores' softmax for keys, channel by channel; group norm, group by group), so that Σ_{j in S} b[j]
stays. All hold under every feedback rule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from lawful.conservation.balance import Ids
from lawful.conservation.base import Law
from lawful.conservation.shift import ShiftLaw
from lawful.conservation.trace import Trace

_TANAKA = "Kunin et al. 2021, translation symmetry; here under any feedback"

CHANNELS = frozenset({"softmax output", "layer norm"})
"""What does not see a common shift of the channels it reads together, at each position by itself."""
POSITIONS = frozenset({"batch norm", "keys", "group norm"})
"""What does not see a shift that is the same at all positions."""
TOGETHER = CHANNELS | {"group norm"}
"""What reads several channels together; the others read each by itself."""

BLIND_REASONS = frozenset({"layer norm mixes its channels", "group norm mixes its channels", "it is an output"})
"""Why a balance is spoiled by readers that :class:`Blindness` knows about itself."""


class Blindness:
    """Who reads a set of channels, as far as shifts are concerned.

    Args:
        trace: a finished run.
    """

    def __init__(self, trace: Trace) -> None:
        self._balance = trace.balance
        self._active, self._blind = trace.balance.activations(), trace.balance.blind()
        self._reads: dict[int, list[tuple[int, bool]]] = defaultdict(list)
        for source, into, plain in trace.balance.plain_reads():
            for s, t in zip(source.tolist(), into.tolist(), strict=True):
                self._reads[s].append((t, plain))
        self._onward = {
            s: t for source, into in trace.balance.links for s, t in zip(source.tolist(), into.tolist(), strict=True)
        }
        self._scores, self._uneven, self._moves = trace.score_amounts, trace.uneven, trace.moves
        self._eyes: dict[int, set[str]] = defaultdict(set)
        self._lines: dict[int, list[frozenset[int]]] = defaultdict(list)
        for sight in trace.norms:
            line = frozenset(sight.line.tolist())
            for i in line:
                self._eyes[i].add(sight.what)
                if sight.what in TOGETHER:
                    self._lines[i].append(line)
        self._near: dict[int, frozenset[frozenset[int]]] = {}

    def parts(self, uses: Sequence[Ids], constant: bool) -> np.ndarray | None:
        """Per channel of a writer the set S it belongs to, −1 for none; None when there is no S at all.

        Args:
            uses: the variables of the writer's channels, for each time it writes.
            constant: of shifts that are the same at all positions; otherwise of any.
        """
        part = np.full(len(uses[0]), -1)
        count = 0
        for members in self._candidates(uses, constant):
            if all(self.holds(ids[members], constant) for ids in uses):
                part[members] = count
                count += 1
        return part if count else None

    def _candidates(self, uses: Sequence[Ids], constant: bool) -> list[list[int]]:
        """The channels of a writer, those together that something downstream reads together."""
        if not constant and not any(self._lines_near(i) for ids in uses for i in ids.tolist()):
            return []
        home: dict[frozenset[int], int] = {}
        leader = list(range(len(uses[0])))

        def find(j: int) -> int:
            while leader[j] != j:
                j = leader[j]
            return j

        for ids in uses:
            for j, i in enumerate(ids.tolist()):
                for line in self._lines_near(i):
                    first, own = find(home.setdefault(line, j)), find(j)
                    leader[max(first, own)] = min(first, own)
        members: dict[int, list[int]] = defaultdict(list)
        for j in range(len(leader)):
            members[find(j)].append(j)
        return list(members.values())

    def _lines_near(self, start: int) -> frozenset[frozenset[int]]:
        """The sets of channels that are read together and that this channel is copied or added into."""
        stack = [start]
        while stack:
            i = stack[-1]
            targets = [t for t, _ in self._onward_of(i)]
            missing = [t for t in targets if t not in self._near]
            if missing:
                stack += missing
                continue
            stack.pop()
            own = frozenset(self._lines.get(i, ()))
            self._near[i] = own.union(*(self._near[t] for t in targets)) if targets else own
        return self._near[start]

    def _onward_of(self, i: int) -> list[tuple[int, bool]]:
        found = []
        for t, plain in self._reads.get(i, ()):
            onward = t if self._active[t] else self._onward.get(t)
            if onward is not None and onward != i:
                found.append((onward, plain))
        return found

    def holds(self, ids: Ids, constant: bool) -> bool:
        """Whether no reader of the channels ``ids``, now or after sums and copies, sees a common shift of them."""
        front, seen, kinds, uneven = [frozenset(ids.tolist())], set(), set(), False
        while front:
            group = front.pop()
            if group in seen:
                continue
            seen.add(group)
            if not self._unseen(group, constant):
                return False
            kinds |= set().union(*(self._eyes.get(i, set()) for i in group))
            uneven |= not self._uneven.isdisjoint(group)
            if uneven and not kinds <= CHANNELS:
                return False
            onward = [self._targets(i, constant) for i in group]
            if any(targets is None for targets in onward) or len({len(t) for t in onward if t is not None}) > 1:
                return False
            columns = zip(*(t for t in onward if t is not None), strict=True)
            for column in columns:
                if len(set(column)) < len(column):
                    return False
                front.append(frozenset(column))
        return True

    def _unseen(self, group: frozenset[int], constant: bool) -> bool:
        """Nothing looks at these channels from outside the balance but what cannot see the shift."""
        allowed = CHANNELS | POSITIONS if constant else CHANNELS
        for i in group:
            eyes, reasons = self._eyes.get(i, set()), self._balance.reasons.get(i, set())
            if not (eyes <= allowed and reasons <= BLIND_REASONS):
                return False
            if "it is an output" in reasons and "softmax output" not in eyes:
                return False
            if not all(line <= group for line in self._lines.get(i, ())):
                return False
        return constant or len({self._moves.get(i) for i in group}) == 1

    def _targets(self, i: int, constant: bool) -> list[int] | None:
        """Channels that this one is copied or added into; None when a reader does something else with it."""
        targets = []
        for t, plain in self._reads.get(i, ()):
            if self._blind[t] or (constant and t in self._scores):
                continue
            onward = t if self._active[t] else self._onward.get(t)
            if onward is None or not plain:
                return None
            targets.append(onward)
        return sorted(targets) if targets or self._eyes.get(i) else None


def shift_laws(trace: Trace) -> Iterator[Law]:
    """Shift laws of every writer."""
    eyes = Blindness(trace)
    for amap, uses in trace.writers.items():
        if amap in trace.tied or any(s.parameter in trace.loose for s in amap.slices):
            continue
        if amap.out is not None and amap.groups == 1:
            part = eyes.parts(uses, constant=False)
            if part is not None:
                yield ShiftLaw(amap.out.site, amap.out, _TANAKA, part)
        if amap.bias is not None:
            part = eyes.parts(uses, constant=True)
            if part is not None:
                yield ShiftLaw(amap.bias.site, amap.bias, _TANAKA, part)
