"""The end of a run: what its maps wrote and read becomes known quantities, where a weight has one role only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lawful.affine.maps import AffineMap
from lawful.affine.slices import Slices
from lawful.conservation.balance import Ids, Known
from lawful.conservation.trace import Trace


def tie(trace: Trace, known: Callable[[Slices, AffineMap, bool], object]) -> None:
    """Tie what a run wrote and read to the weights.

    Args:
        trace: a finished run.
        known: (lines, map, written?) -> what a block of known quantities stands for.
    """
    maps = dict.fromkeys([*trace.writers, *(amap for amap, _ in trace.readers)])
    trace.tied = tied = {a for a in maps for b in maps if a is not b and _share(a, b)}
    tied |= {a for a in maps if any(s.parameter in trace.sources for s in a.slices)}
    for amap, uses in trace.writers.items():
        if amap not in tied and not any(s.parameter in trace.loose for s in amap.slices):
            _tie_writer(trace, amap, uses, known)
    for (amap, into), uses in trace.readers.items():
        same = all(np.array_equal(uses[0][0], line) for line, _ in uses)
        if amap not in tied and same and (amap, into) not in trace.outside and into.parameter not in trace.loose:
            line, amounts = uses[0]
            block = Known(known(into, amap, False), line)
            total = trace.balance.fresh(len(amounts), known=block)
            _sum_of(trace, [a for _, a in uses], [total])
    taken = {s.parameter for amap in maps for s in amap.slices}
    for name, uses in trace.sources.items():
        line, amounts = uses[0]
        if name not in taken and name not in trace.loose and all(np.array_equal(line, other) for other, _ in uses):
            lines = Slices(name, (len(line),), (0,))
            block = Known(known(lines, AffineMap(lines, None), True), line)
            _sum_of(trace, [a for _, a in uses], [trace.balance.fresh(len(amounts), known=block)])


def _tie_writer(trace: Trace, amap: AffineMap, uses: list[Ids], known: Callable[..., object]) -> None:
    totals = [
        trace.balance.fresh(amap.channels, known=Known(known(s, amap, True), np.arange(amap.channels)))
        for s in amap.slices
    ]
    _sum_of(trace, uses, totals, amap.groups)


def _sum_of(trace: Trace, uses: Sequence[Ids], totals: Sequence[Ids], groups: int = 1) -> None:
    at = np.arange(len(totals[0]))
    key = 0 if groups == 1 else at * groups // len(at) + 1
    trace.balance.equate(len(at), [*((at, ids, 1) for ids in uses), *((at, ids, -1) for ids in totals)], key)


def _share(a: AffineMap, b: AffineMap) -> bool:
    return any(s.overlaps(t) for s in a.slices for t in b.slices)
