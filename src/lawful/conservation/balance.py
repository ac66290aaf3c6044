"""The error balance: for every channel of every activation, where ⟨δ, activation⟩ comes from and where it goes.

Write E_j = Σ_n δ_j a_j for a channel j of an activation a. Whatever the error signals are,

- an affine map that writes a:     E_j = −(⟨Ẇ[j], W[j]⟩ + b_j ḃ_j),
- a reader of a adds to E_j:       k·E_j(y) for y = σ(a) homogeneous of degree k;  −⟨Ẇ_c[:, j], B_c[:, j]⟩ for a layer
                                   with feedback B_c;  an unknown amount for anything else,
- y = a + a':                      the two amounts add up to E_j(y).

These are linear equations with exact coefficients. Eliminating what is unknown leaves the laws.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lawful.conservation.elimination import relations
from lawful.conservation.norm_calls import NormCall

Ids = np.ndarray
"""Integer names of variables."""

NOT_LINEAR = -1
"""Key of a relation that treats the channels of a group differently, so that no matrix law passes it."""


@dataclass(frozen=True)
class Unseen:
    """The term of what a norm adds to the E of its input: nothing as eps → 0.

    Args:
        call: the norm.
        rows: which of its rows each number of the block is.
    """

    call: NormCall
    rows: Ids


@dataclass(frozen=True)
class Known:
    """A block of quantities known from the weights: what a parameter contributes, per channel.

    Args:
        term: what the derivation makes of it (opaque here).
        channel: which of the block's numbers belongs to which line of the parameter: (lines,), −1 for none.
        keys: per number, the group within which channels mix (0: all).
    """

    term: object
    channel: Ids


@dataclass(frozen=True)
class Relation:
    """One law for many channels: Σ coefficient · known block, taken at ``members`` of the block.

    Args:
        parts: (block, coefficient, members): the numbers of the block that the channels of this relation use.
        groups: (channels,) equal where channels form a linear group; −1 where they do not.
    """

    parts: Sequence[tuple[Known, Fraction, Ids]]
    groups: Ids


@dataclass
class Balance:
    """Collects the equations, then solves them."""

    size: int = 0
    reasons: dict[int, set[str]] = field(default_factory=dict)
    blocks: list[tuple[int, int, Known | None, bool]] = field(default_factory=list)
    _entries: list[tuple[Ids, Ids, np.ndarray, Ids]] = field(default_factory=list)
    reads: list[tuple[Ids, Ids, np.ndarray, Ids]] = field(default_factory=list)
    links: list[tuple[Ids, Ids]] = field(default_factory=list)
    equation_calls: list[list[tuple[Ids, float]]] = field(default_factory=list)
    _equations: int = 0
    _equation_blocks: list[int] = field(default_factory=list)

    def fresh(self, count: int, *, known: Known | None = None, activation: bool = False) -> Ids:
        """New variables: known quantities, channels of an activation (its readers account for its E), or unknowns."""
        self.blocks.append((self.size, count, known, activation))
        ids = np.arange(self.size, self.size + count)
        self.size += count
        return ids

    def read(self, source: Ids, into: Ids, coefficient: float = 1, key: Ids | int = 0) -> None:
        """A reader adds coefficient · E(into) to E(source), elementwise over the two lists."""
        keys = np.broadcast_to(np.asarray(key), source.shape)
        self.reads.append((source, into, np.full(source.shape, float(coefficient)), keys))

    def equate(self, count: int, entries: Sequence[tuple[Ids, Ids, float]], key: Ids | int = 0) -> None:
        """``count`` equations Σ coefficient · variable = 0; an entry is (equation, variable, coefficient)."""
        self.equation_calls.append([(variable, coefficient) for _, variable, coefficient in entries])
        for equation, variable, coefficient in entries:
            keys = np.broadcast_to(np.asarray(key), (count,))[equation]
            self._entries.append(
                (equation + self._equations, variable, np.full(equation.shape, float(coefficient)), keys)
            )
        self._equation_blocks += [len(self._equation_blocks)] * count if count else []
        self._equations += count

    def plain_reads(self) -> Iterator[tuple[Ids, Ids, bool]]:
        """Reads as (source, into, whether the error passes unchanged up to a factor common to all channels)."""
        for source, into, coefficient, keys in self.reads:
            yield source, into, bool((keys == 0).all() and (coefficient == 1).all())

    def activations(self) -> list[bool]:
        """For each variable whether it is a channel of an activation."""
        return [activation for _, count, _, activation in self.blocks for _ in range(count)]

    def blind(self) -> list[bool]:
        """For each variable whether it is what a norm adds: nothing, in its limit."""
        unseen = [known is not None and isinstance(known.term, Unseen) for _, _, known, _ in self.blocks]
        return [u for u, (_, count, _, _) in zip(unseen, self.blocks, strict=True) for _ in range(count)]

    def spoil(self, ids: Ids, reason: str) -> None:
        """An unknown amount is added to the E of these channels, for this reason."""
        for i in np.unique(ids).tolist():
            self.reasons.setdefault(i, set()).add(reason)

    def _rows(self) -> tuple[Ids, Ids, np.ndarray, Ids]:
        """All equations as (equation, variable, coefficient, key); equation numbers of equal kind are sortable."""
        parts = list(self._entries)
        spoiled = np.zeros(self.size, dtype=bool)
        spoiled[list(self.reasons)] = True
        balanced = np.zeros(self.size, dtype=bool)
        for start, count, _, activation in self.blocks:
            balanced[start : start + count] = activation
        balanced &= ~spoiled
        base = self._equations
        ids = np.nonzero(balanced)[0]
        parts.append((ids + base, ids, np.ones(len(ids)), np.zeros(len(ids), dtype=np.int64)))
        for source, into, coefficient, keys in self.reads:
            mask = balanced[source]
            parts.append((source[mask] + base, into[mask], -coefficient[mask], keys[mask]))
            # a spoiled source still tells which channels hang together: no equation, nothing to solve
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]

    def solve(self) -> Iterator[Relation]:
        """Every independent relation between known quantities, equal channels together."""
        if not self._entries:
            return
        equation, variable, coefficient, key = self._rows()
        starts = np.array([block[0] for block in self.blocks])
        block_of = np.searchsorted(starts, np.arange(self.size), side="right") - 1
        count = int(equation.max()) + 1
        graph = coo_array(
            (np.ones(len(equation)), (equation, variable + count)), shape=(count + self.size, count + self.size)
        )
        component = connected_components(graph, directed=False)[1][equation]
        order = np.lexsort((variable, equation, component))
        equation, variable, coefficient, key = (a[order] for a in (equation, variable, coefficient, key))
        cuts = np.nonzero(np.diff(component[order]))[0] + 1
        kinds = self._kinds(count, block_of)
        alike: dict[tuple, list[tuple[np.ndarray, tuple]]] = defaultdict(list)
        for rows in np.split(np.arange(len(order)), cuts):
            names, local = np.unique(variable[rows], return_inverse=True)
            equations, row = np.unique(equation[rows], return_inverse=True)
            shape = (
                block_of[names].tobytes(),
                kinds[equations].tobytes(),
                local.tobytes(),
                row.tobytes(),
                coefficient[rows].tobytes(),
            )
            keyed = key[rows] != 0
            keys = tuple(zip(local[keyed].tolist(), key[rows][keyed].tolist(), strict=True))
            alike[shape].append((names, keys))
        for (_, _, local, row, weights), members in alike.items():
            yield from self._relations(
                block_of, np.frombuffer(local, np.int64), np.frombuffer(row, np.int64), np.frombuffer(weights), members
            )

    def _kinds(self, count: int, block_of: Ids) -> Ids:
        """Block of every equation: that of its call, or that of the activation it balances."""
        explicit = np.array(self._equation_blocks, dtype=np.int64)
        return np.concatenate([explicit, len(explicit) + block_of])[:count]

    def _relations(
        self, block_of: Ids, local: Ids, row: Ids, weights: np.ndarray, members: list[tuple[np.ndarray, tuple]]
    ) -> Iterator[Relation]:
        names = np.stack([ids for ids, _ in members])  # (channels, variables)
        known = [self.blocks[block_of[i]][2] for i in names[0]]
        rows: dict[int, dict] = defaultdict(dict)
        for l, r, w in zip(local.tolist(), row.tolist(), weights.tolist(), strict=True):
            rows[r][l] = rows[r].get(l, Fraction(0)) + Fraction(w)
        groups: dict[tuple, int] = {}
        labels = [
            NOT_LINEAR if any(k == NOT_LINEAR for _, k in keys) else groups.setdefault(keys, len(groups))
            for _, keys in members
        ]
        for solution in relations(rows.values(), known=lambda l: known[l] is not None):
            parts = []
            for l, c in solution.items():
                block = known[l]
                assert block is not None
                parts.append((block, c, names[:, l] - self.blocks[block_of[names[0, l]]][0]))
            yield Relation(parts, np.array(labels))

    def link(self, source: Ids, into: Ids) -> None:
        """Amounts ``source`` flow on into the channels ``into``, by an equation: for :meth:`reasons_near`."""
        self.links.append((source, into))

    def reached(self, ids: Ids) -> np.ndarray:
        """For each variable whether it is downstream of ``ids``."""
        pairs = [(source, into) for source, into, _, _ in self.reads] + self.links
        reached = np.zeros(self.size, dtype=bool)
        reached[ids] = True
        before = -1
        while before != (before := int(reached.sum())):
            for source, into in pairs:
                reached[into[reached[source]]] = True
        return reached

    def reasons_near(self, ids: Ids) -> list[str]:
        """Why channels downstream of ``ids`` are spoiled, the most frequent reason first."""
        reached = self.reached(ids)
        counts = Counter(reason for i, why in self.reasons.items() if reached[i] for reason in sorted(why))
        return [reason for reason, _ in counts.most_common()]
