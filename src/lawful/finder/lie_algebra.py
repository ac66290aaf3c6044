"""The rank of the Lie algebra that update fields generate, exactly, at one generic point.

    level 0: F_a        level k: [F_a, G] = DG·F_a - DF_a·G for G of level k-1

The rank modulo p at a point is a lower bound of the generic rank over the rationals: every minor that is nonzero there
is a nonzero polynomial. So dimension - rank is a rigorous upper bound of the number of independent laws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lawful.finder import residues as ff
from lawful.finder.fields import Data, System, draw_data, draw_point, feedback_at, flat
from lawful.finder.geometry import state_field

Field = Callable[[Sequence[Any]], list[Any]]

MARGIN = 6
"""Samples beyond the rank still missing; a level that adds fewer than were asked for is exhausted."""

RARE = 96
"""Samples in a batch where data are drawn from finitely many cases."""

MAX_LEVEL = 6
_BLOCK_ELEMENTS = 3_000_000


@dataclass
class LieRank:
    """The outcome of one rank computation.

    Attributes:
        dimension: coordinates of the state.
        rank: the exact rank modulo p.
        levels: rank after each level of brackets.
        samples: number of brackets evaluated in each level.
        complete: a whole level added nothing, or nothing was missing.
        interrupted: Ctrl-C; the rank so far still counts.
        point: the state, block by block.
        B: the constant feedback weights at the point.
    """

    dimension: int
    rank: int = 0
    levels: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    complete: bool = False
    interrupted: bool = False
    point: list[np.ndarray] = field(default_factory=list)
    B: tuple[np.ndarray, ...] = ()
    seed: int = 0

    def cut_short(self, rank: int) -> None:
        """Keep what an interrupted level has reached; as many brackets as the rank grew by suffice for it."""
        self.interrupted = True
        if rank > self.rank:
            self.samples[len(self.levels) :] = [rank - self.rank]
            self.levels.append(rank)
            self.rank = rank

    @property
    def bound(self) -> int:
        """At most this many independent laws."""
        return self.dimension - self.rank


def nested_bracket(fields: Sequence[Field], theta: Sequence[Any]) -> list[Any]:
    """[f_1, [f_2, … f_k]] at θ, exact, by one dual number a bracket."""
    first, *rest = fields
    if not rest:
        return first(theta)
    u = first(theta)
    along = nested_bracket(rest, [ff.Dual(t, d) for t, d in zip(theta, u, strict=True)])
    v = [_real(a) for a in along]
    back = first([ff.Dual(t, d) for t, d in zip(theta, v, strict=True)])
    return [ff.add(_imaginary(a), ff.scale(_imaginary(b), -1.0)) for a, b in zip(along, back, strict=True)]


def _real(a: Any) -> Any:
    return a.re if isinstance(a, ff.Dual) else a


def _imaginary(a: Any) -> Any:
    return a.im if isinstance(a, ff.Dual) else None


def bracket_rows(
    system: System, B: Sequence[Any], point: Sequence[np.ndarray], data: Sequence[Data], count: int
) -> np.ndarray:
    """The brackets of level ``len(data) - 1`` at the point, one a row."""
    fields: list[Field] = [lambda theta, d=d: state_field(system, B, theta, d) for d in data]
    return flat(system, nested_bracket(fields, point), count)


def lie_rank(
    system: System,
    *,
    seed: int = 0,
    near: Sequence[np.ndarray] | None = None,
    known: int = 0,
    max_level: int = MAX_LEVEL,
    progress: Callable[[float, str], None] | None = None,
) -> LieRank:
    """The rank at the point that ``seed`` draws, level by level until a level adds nothing.

    Args:
        system: network, rule and feedback weights.
        seed: draws the point and the samples.
        near: a point of the orthant that the point must lie in, where laws are local to one.
        known: laws already proved; reaching dimension - known ends the search, as more is impossible.
        max_level: the deepest bracket.
        progress: called with a fraction and a text.

    Returns:
        The ranks; after Ctrl-C those of the levels done, with ``complete`` False.
    """
    rng = np.random.default_rng(seed)
    point = draw_point(system, rng, near)
    B = feedback_at(system, point)
    dimension = system.dimension
    echelon = ff.Echelon(dimension)
    result = LieRank(dimension, point=point, B=B, seed=seed)
    target = dimension - known
    try:
        for level in range(max_level + 1):
            before = echelon.rank
            result.samples.append(_add_level(system, B, point, level, echelon, target, rng, progress))
            result.rank = echelon.rank
            result.levels.append(echelon.rank)
            if echelon.rank >= target or (level and echelon.rank == before):
                result.complete = True
                break
    except KeyboardInterrupt:
        result.cut_short(echelon.rank)
    return result


def _add_level(
    system: System,
    B: Sequence[Any],
    point: Sequence[np.ndarray],
    level: int,
    echelon: ff.Echelon,
    target: int,
    rng: np.random.Generator,
    progress: Callable[[float, str], None] | None,
) -> int:
    """Add brackets of one level until a batch gives less than it could; the number evaluated.

    Where signs and activation patterns are few and some of them rare, until a batch gives nothing.
    """
    used = 0
    rare = bool(system.family.orthant) or system.family.route == "signs" or system.inputs is not None
    cap = max(8, _BLOCK_ELEMENTS // (system.dimension * 2 ** min(level, 4)))
    while echelon.rank < target or not (used or level):  # one batch at least: it would show a law too many
        every = 0 if system.inputs is None else len(system.inputs)
        count = min(max(target - echelon.rank + MARGIN, RARE if rare else 0, every), cap)
        data = [draw_data(system, point, count, rng) for _ in range(level + 1)]
        gained = len(echelon.add(bracket_rows(system, B, point, data, count)))
        used += count
        if progress is not None:
            progress(echelon.rank / max(1, target), f"brackets of level {level}: rank {echelon.rank} of {target}")
        if gained == 0 or (not rare and gained < count - MARGIN // 2):
            break
    return used
