"""The error balance summed over channels: what a norm cannot see is the scale of all it reads together.

A layer norm, RMS norm or group norm receives Σ_j E_j → 0 over the channels j it reads together as its eps → 0, though
no single E_j is known. Channels that hang together, by equations or by being read together, form a *bundle*: a residual
stream, or the part of it that falls into one group of a group norm. Summing every block of the balance over the
channels of one bundle leaves a small system with one variable per block, where that is one more known number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lawful.conservation.balance import Balance, Ids, Known, Unseen
from lawful.conservation.elimination import Row, relations
from lawful.conservation.norm_calls import NormCall
from lawful.conservation.trace import Sight

NORMS = frozenset({"layer norm", "RMS norm", "group norm", "norm of padding"})
_REASONS = frozenset(f"{norm} mixes its channels" for norm in NORMS)


@dataclass(frozen=True)
class Eps:
    """A column of the small system: what the eps of a norm adds.

    Args:
        number: which of the sights of the bundle.
        block: of a batch norm, the block of what it adds.
    """

    number: int = -1
    block: int = -1


@dataclass(frozen=True)
class Stream:
    """One relation between known quantities, the same for several bundles.

    Args:
        parts: (block, coefficient, which bundle each line of the block belongs to, −1 for none).
        count: number of bundles.
        norms: (norm, coefficient, its rows, bundle): what their eps adds, nothing as it goes to 0.
    """

    parts: Sequence[tuple[Known, Fraction, Ids]]
    count: int
    norms: Sequence[tuple[NormCall, Fraction, Ids, int]]


def stream_relations(balance: Balance, sights: Sequence[Sight]) -> Iterator[Stream]:
    """Relations between known quantities that hold because norms do not see the scale of a bundle.

    Args:
        balance: of a finished run.
        sights: what norms read.
    """
    seen = [sight for sight in sights if sight.what in NORMS]
    if not seen:
        return
    bundles = _Bundles(balance, seen)
    solutions: dict[tuple, list[Row]] = {}
    alike: dict[tuple, list[tuple[int, list[tuple[Eps, Fraction]]]]] = defaultdict(list)
    for bundle, rows in bundles.systems().items():
        key = tuple(tuple(row.items()) for row in rows)
        if key not in solutions:
            solutions[key] = relations(rows, known=lambda c: isinstance(c, Eps) or bundles.known(c))
        for solution in solutions[key]:
            eps = [(c, v) for c, v in solution.items() if isinstance(c, Eps)]
            if any(c.number >= 0 for c, _ in eps):
                terms = tuple((c, v) for c, v in solution.items() if not isinstance(c, Eps))
                alike[terms].append((bundle, eps))
    for terms, members in alike.items():
        place = np.full(bundles.count + 1, -1)
        place[[bundle for bundle, _ in members]] = np.arange(len(members))
        parts = [(bundles.block(c), v, place[bundles.of_lines(c)]) for c, v in terms]
        norms = [(*bundles.norm(bundle, c), v, i) for i, (bundle, eps) in enumerate(members) for c, v in eps]
        yield Stream(parts, len(members), [(call, v, rows, i) for call, rows, v, i in norms])


class _Bundles:
    """Columns are blocks, one system of equations per bundle."""

    def __init__(self, balance: Balance, sights: Sequence[Sight]) -> None:
        self._balance, self._sights, self._blocks = balance, sights, balance.blocks
        self._block_of = np.repeat(np.arange(len(self._blocks)), [count for _, count, _, _ in self._blocks])
        self.of = self._bundle_of_variables()
        self.count = int(self.of.max()) + 1
        inside = self.of >= 0
        pairs, sizes = np.unique(self._pair(np.nonzero(inside)[0]), return_counts=True)
        self._sizes = dict(zip(pairs.tolist(), sizes.tolist(), strict=True))
        self._seen: dict[int, list[Sight]] = defaultdict(list)
        for sight in sights:
            self._seen[int(self.of[sight.line[0]])].append(sight)

    def norm(self, bundle: int, column: Eps) -> tuple[NormCall, Ids]:
        """The norm whose eps a column stands for, and its rows."""
        if column.number >= 0:
            sight = self._seen[bundle][column.number]
            assert sight.call is not None and sight.rows is not None
            return sight.call, sight.rows
        start, count, known, _ = self._blocks[column.block]
        assert known is not None and isinstance(known.term, Unseen)
        return known.term.call, known.term.rows[self.of[start : start + count] == bundle]

    def _pair(self, ids: Ids) -> Ids:
        """Bundle and block of variables as one number."""
        return self.of[ids] * len(self._blocks) + self._block_of[ids]

    def _bundle_of_variables(self) -> Ids:
        size = self._balance.size
        edges = [(equation + size, variable) for equation, variable, _, _ in self._balance._entries]
        edges += [(source, into) for source, into, _, _ in self._balance.reads]
        edges += [(np.full(len(s.line), s.line[0]), s.line) for s in self._sights]
        left, right = (np.concatenate(side) for side in zip(*edges, strict=True))
        nodes = max(size, int(left.max()) + 1)
        component = connected_components(coo_array((np.ones(len(left)), (left, right)), shape=(nodes, nodes)), False)[1]
        chosen = np.unique(component[[int(s.line[0]) for s in self._sights]])
        number = np.full(int(component.max()) + 1, -1)
        number[chosen] = np.arange(len(chosen))
        return number[component[:size]]

    def known(self, column: object) -> bool:
        """Whether a column is what a parameter contributes."""
        known = self._blocks[column][2] if isinstance(column, int) else None
        return known is not None and not isinstance(known.term, Unseen)

    def block(self, column: int) -> Known:
        known = self._blocks[column][2]
        assert known is not None
        return known

    def of_lines(self, column: int) -> Ids:
        """The bundle of every line of a known block, −1 for none."""
        start, channel = self._blocks[column][0], self.block(column).channel
        return np.where(channel >= 0, self.of[start + np.maximum(channel, 0)], -1)

    def _sums(self, ids: Ids) -> dict[int, dict[int, bool]]:
        """Bundle -> block -> whether the variables are all of the block's variables in the bundle, each once."""
        found: dict[int, dict[int, bool]] = defaultdict(dict)
        ids = ids[self.of[ids] >= 0]
        distinct, counts = np.unique(ids, return_counts=True)
        pairs, place, number = np.unique(self._pair(distinct), return_inverse=True, return_counts=True)
        repeated = np.zeros(len(pairs), dtype=bool)
        repeated[place[counts > 1]] = True
        for pair, n, twice in zip(pairs.tolist(), number.tolist(), repeated.tolist(), strict=True):
            bundle, block = divmod(pair, len(self._blocks))
            found[bundle][block] = n == self._sizes[pair] and not twice
        return found

    def _add(self, row: Row, block: int, weight: Fraction) -> None:
        known = self._blocks[block][2]
        name = Eps(block=block) if known is not None and isinstance(known.term, Unseen) else block
        row[name] = row.get(name, Fraction(0)) + weight

    def systems(self) -> dict[int, list[Row]]:
        """Bundle -> its equations: those of the balance, summed, and the norms' own."""
        found: dict[int, list[Row]] = defaultdict(list)
        for entries in self._balance.equation_calls:
            rows: dict[int, Row] = defaultdict(dict)
            partial: set[int] = set()
            for variable, coefficient in entries:
                for bundle, blocks in self._sums(variable).items():
                    for block, whole in blocks.items():
                        self._add(rows[bundle], block, Fraction(coefficient))
                        if not whole:
                            partial.add(bundle)
            for bundle in rows.keys() - partial:
                found[bundle].append(rows[bundle])
        looks: dict[tuple[int, int], list[str]] = defaultdict(list)
        numbers: dict[int, int] = defaultdict(int)
        for sight in self._sights:
            ((bundle, blocks),) = self._sums(sight.line).items()
            shares = [f"share {numbers[bundle]} of {block}" for block in blocks]
            for block, share in zip(blocks, shares, strict=True):
                looks[bundle, block].append(share)
            found[bundle].append({**dict.fromkeys(shares, Fraction(1)), Eps(numbers[bundle]): Fraction(-1)})
            numbers[bundle] += 1
        for bundle, row in self._balances(looks):
            found[bundle].append(row)
        return found

    def _balances(self, looks: dict[tuple[int, int], list[str]]) -> Iterator[tuple[int, Row]]:
        """Σ_j E_j of every block in every bundle, as what its readers add."""
        readings: dict[tuple[int, int], list[tuple[Ids, np.ndarray]]] = defaultdict(list)
        for source, into, coefficient, _ in self._balance.reads:
            inside = np.nonzero(self.of[source] >= 0)[0]
            pair = self._pair(source[inside])
            for p in np.unique(pair).tolist():
                at = inside[pair == p]
                readings[divmod(p, len(self._blocks))].append((into[at], coefficient[at]))
        reasons: dict[int, set[str]] = defaultdict(set)
        for i, why in self._balance.reasons.items():
            if self.of[i] >= 0:
                reasons[int(self._pair(np.array([i]))[0])] |= why
        for pair in self._sizes:
            bundle, block = divmod(pair, len(self._blocks))
            if not self._blocks[block][3] or reasons[pair] - _REASONS:
                continue
            row: Row = {block: Fraction(1), **dict.fromkeys(looks.get((bundle, block), ()), Fraction(-1))}
            complete = True
            for into, coefficient in readings.get((bundle, block), ()):
                complete &= len(set(coefficient.tolist())) == 1
                for _, blocks in self._sums(into).items():
                    for target, whole in blocks.items():
                        complete &= whole
                        self._add(row, target, -Fraction(float(coefficient[0])))
            if complete:
                yield bundle, row
