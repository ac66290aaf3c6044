"""Update fields of a circuit modulo a prime, at points where every square root is rational.

Data: inputs, errors, ReLU patterns that occur, softmax weights P (rows sum to one), and for norms r with r²(v + ε) = 1.
Half of all v have such an r: samples are drawn again until all have it. That P and r obey no other relation is tested
in :mod:`lawful.finder.circuits.free_data`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from lawful.errors import SettingError
from lawful.finder import residues as ff
from lawful.finder.circuits.arithmetic import Residues, Value
from lawful.finder.circuits.circuit import Circuit, backward, forward
from lawful.finder.circuits.free_data import allowed, patterns, random_weights, roots_at, slopes
from lawful.finder.circuits.nodes import InverseRoot, Mask, Softmax, State
from lawful.finder.families import Family
from lawful.finder.lie_algebra import MARGIN, MAX_LEVEL, LieRank, nested_bracket

B_RANGE = 9
"""Feedback weights are nonzero integers up to this size: small, so that laws with numbers of B in them stay small."""

_BATCH = 20_000
_DRAWS = 200


@dataclass(frozen=True, eq=False)
class System:
    """A circuit under a rule.

    Attributes:
        circuit: the network.
        family: the rule.
        exact: a number B for each variable (used where it is in ``circuit.feedback``); for sign rules at the point.
        softmax: the errors of the outputs that go through one softmax sum to zero.
    """

    circuit: Circuit
    family: Family
    exact: np.ndarray
    softmax: bool = False

    @property
    def moving(self) -> bool:
        """B is part of the state."""
        return self.family.source == "moving"

    @property
    def dimension(self) -> int:
        """Coordinates of the state: θ, and B where it moves."""
        return len(self.state)

    @cached_property
    def state(self) -> np.ndarray:
        """The symbols of the state: variable v is symbol v, its B symbol D + v."""
        size = self.circuit.size
        own = np.arange(size)
        return np.concatenate([own, size + self.circuit.feedback]) if self.moving else own

    @cached_property
    def names(self) -> list[str]:
        """Of θ and of B (for sign rules S = M ⊙ sign(W)), as far as there is one."""
        letter = "S" if self.family.source == "sign" else "B"
        return self.circuit.names + [f"{letter}({name})" for name in self.circuit.names]


@dataclass(frozen=True)
class Sample:
    """Data by node, and output errors; one row a sample."""

    data: Mapping[int, np.ndarray]
    error: np.ndarray


def random_point(system: System, rng: np.random.Generator) -> np.ndarray:
    """θ and B, one residue for each symbol; B as given unless it moves."""
    size = system.circuit.size
    theta = ff.random_residues(rng, (size,))
    B = ff.random_residues(rng, (size,)) if system.moving else ff.residues_of(system.exact)
    return np.concatenate([theta, B])


def draw(system: System, values: np.ndarray, count: int, rng: np.random.Generator) -> tuple[Sample, np.ndarray]:
    """Samples with every square root rational, from candidates at ``values`` (symbols,) or one row of values each.

    Returns:
        The samples, at most ``count``, and which candidates they are.

    Raises:
        SettingError: no variance ever has a square root (a norm over units that are always equal).
    """
    circuit = system.circuit
    rows = len(values) if values.ndim == 2 else min(_BATCH, count * circuit.candidates_per_sample + MARGIN)
    on = patterns(circuit, rows, rng)
    good = allowed(circuit, on, rows)
    data: dict[int, np.ndarray] = {}

    def given(number: int, inputs: Any) -> np.ndarray:
        node = circuit.nodes[number]
        match node:
            case Mask():
                data[number] = slopes(node, on[number])
            case Softmax():
                data[number] = random_weights(node.row, rows, rng)
            case InverseRoot():
                data[number], _ = roots_at(number, node, inputs[0], rows)
                good[:] &= np.all(data[number] != 0, axis=1)
            case _:
                data[number] = ff.random_residues(rng, (rows, node.size))
        return data[number]

    forward(circuit, State(Residues(), values[..., : circuit.size]), given)
    kept = np.flatnonzero(good)[:count]
    error = ff.random_residues(rng, (rows, circuit.nodes[-1].size))
    if system.softmax:
        each = error.reshape(rows, -1, circuit.logits)
        each[..., -1] = ff.reduce(-each[..., :-1].sum(axis=-1))
    return Sample({number: block[kept] for number, block in data.items()}, error[kept]), kept


def draw_exactly(system: System, values: np.ndarray, count: int, rng: np.random.Generator) -> Sample:
    """``count`` samples at one point."""
    parts, found = [], 0
    for _ in range(_DRAWS):
        sample, kept = draw(system, values, count - found, rng)
        parts.append(sample)
        found += len(kept)
        if found == count:
            return Sample({n: np.concatenate([s.data[n] for s in parts]) for n in parts[0].data},
                          np.concatenate([s.error for s in parts]))  # fmt: skip
    raise SettingError(
        f"find_laws: {system.circuit.name}: no data found whose variances are squares modulo the prime; too many "
        "norms for exact counting, or a norm with epsilon 0 over units that are always equal"
    )


def rates(system: System, blocks: list[Value], sample: Sample, B: Value) -> list[Value]:
    """F at the blocks [θ] or, where B moves, [θ, its B's]; ``B`` counts where it is constant."""
    circuit, ar = system.circuit, Residues()
    if system.moving:
        B = ar.collect(blocks[1], circuit.feedback, circuit.size)
    elif system.family.source == "weight":
        B = blocks[0]
    s = State(ar, blocks[0], B)
    visited = forward(circuit, s, lambda number, _: sample.data[number])
    rate = backward(circuit, s, visited, sample.error)
    return [rate, ar.take(rate, circuit.feedback)] if system.moving else [rate]


def state_blocks(system: System, values: np.ndarray) -> list[Value]:
    """The symbols' values as the blocks of the state."""
    size = system.circuit.size
    return [values[..., :size]] + [values[..., size + system.circuit.feedback]] * system.moving


def bracket_rows(system: System, values: np.ndarray, samples: list[Sample], count: int) -> np.ndarray:
    """[F_a, [F_b, …]] at the point, one a row."""
    B = values[system.circuit.size :]
    fields = [partial(lambda blocks, sample: rates(system, blocks, sample, B), sample=sample) for sample in samples]
    blocks = nested_bracket(fields, state_blocks(system, values))
    sizes = [system.circuit.size, system.dimension - system.circuit.size]
    rows = [np.zeros((count, n)) if block is None else np.broadcast_to(block, (count, n))
            for block, n in zip(blocks, sizes, strict=False)]  # fmt: skip
    return np.concatenate(rows, axis=1)


def lie_rank(system: System, *, seed: int, known: int = 0, max_level: int = MAX_LEVEL, progress: Any = None) -> LieRank:
    """As :func:`lawful.finder.lie_algebra.lie_rank`, for circuits."""
    rng = np.random.default_rng([seed, 3])
    values = random_point(system, rng)
    echelon, target = ff.Echelon(system.dimension), system.dimension - known
    rare = any(isinstance(node, Mask) for node in system.circuit.nodes)  # a pattern may be
    result = LieRank(system.dimension, point=[values], seed=seed)
    try:
        for level in range(max_level + 1):
            before, used = echelon.rank, 0
            while echelon.rank < target:
                count = target - echelon.rank + MARGIN
                samples = [draw_exactly(system, values, count, rng) for _ in range(level + 1)]
                gained = len(echelon.add(bracket_rows(system, values, samples, count)))
                used += count
                if progress is not None:
                    progress(echelon.rank / max(1, target), f"brackets of level {level}: rank {echelon.rank}")
                if gained == 0 or (not rare and gained < count - MARGIN // 2):
                    break
            result.samples.append(used)
            result.levels.append(echelon.rank)
            result.rank = echelon.rank
            if echelon.rank >= target or (level and echelon.rank == before):
                result.complete = True
                break
    except KeyboardInterrupt:
        result.cut_short(echelon.rank)
    return result
