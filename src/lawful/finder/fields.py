"""The update fields of a rule: F(θ; x, e, s) modulo a prime, for many (input, error, activation pattern) at once.

    a_i = σ(W_i a_{i-1} + b_i),   δ_L = e,   δ_{i-1} = (δ_i B_i) ⊙ σ'(h_{i-1}),   F = -(δ_iᵀ a_{i-1}, δ_i, …)

The activation pattern s is data like x and e: a law analytic on all of θ-space that holds where s is realised holds
everywhere. Where a rule fixes signs (an orthant of θ) only patterns realised there are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from lawful.finder import residues as ff
from lawful.finder.architectures import Architecture
from lawful.finder.families import Family
from lawful.finder.signs import joint_patterns, sign_cells

B_RANGE = 99
"""Feedback weights are drawn as nonzero integers up to this size: exact over the rationals and modulo p alike."""


E_RANGE = 9999
"""Errors and feedback weights whose signs matter are whole numbers up to this size: sums are rarely zero by chance."""


@dataclass(frozen=True)
class Data:
    """One batch of samples: x (n, n_0), e (n, n_L), and per hidden layer masks, free values, and carried signs."""

    x: np.ndarray
    e: np.ndarray
    target: np.ndarray
    masks: list[np.ndarray | None]
    values: list[np.ndarray]
    signs: list[np.ndarray]

    def part(self, rows: slice) -> Data:
        """Some of the samples."""
        return Data(
            self.x[rows],
            self.e[rows],
            self.target[rows],
            [None if m is None else m[rows] for m in self.masks],
            [v[rows] for v in self.values],
            [s[rows] for s in self.signs],
        )


@dataclass(frozen=True)
class System:
    """An architecture under a rule at one generic point: everything a field needs but its data.

    Attributes:
        arch: the network.
        family: the rule.
        exact: per layer the constant feedback weight as rationals (exact[0] is unused): of W_i's shape, or for
            direct rules D_i (outputs, n_i) stored at layer i + 1.
        softmax: error signals sum to zero.
        inputs: fixed inputs (n, n_0), rationals, for laws that hold on a data set only, or None for all inputs.
        geometry: the optimiser, a name in :data:`lawful.finder.geometry.GEOMETRIES`.
        decay: under "decay" the relative rate at which each layer decays, in whole numbers.
        scale: s of uniform sign symmetry, None for 1/√fan-in; laws are found with s = 1, which changes no count.
    """

    arch: Architecture
    family: Family
    exact: tuple[np.ndarray, ...]
    softmax: bool = False
    inputs: np.ndarray | None = None
    geometry: str = "plain"
    decay: tuple[int, ...] = ()
    scale: float | None = None

    @cached_property
    def B(self) -> tuple[np.ndarray, ...]:
        """``exact`` modulo the prime."""
        return tuple(ff.residues_of(block) for block in self.exact)

    @cached_property
    def scaled(self) -> tuple[np.ndarray, ...]:
        """``exact`` times its common denominator, as Python integers."""
        denominators = [Fraction(v).denominator for block in self.exact for v in block.ravel()]
        common = math.lcm(*denominators)
        return tuple(
            np.array([int(v * common) for v in block.ravel()], dtype=object).reshape(block.shape)
            for block in self.exact
        )

    @cached_property
    def errors(self) -> np.ndarray:
        """A basis of the error signals, one a column: all of them, or for softmax those with sum zero."""
        free = np.eye(self.arch.widths[-1], dtype=int).astype(object)
        if self.softmax:
            free = free[:, :-1].copy()
            free[-1, :] = -1
        return free

    @cached_property
    def cells(self) -> list[tuple[tuple[int, ...], list[int]]] | None:
        """Sign feedback: every value of δ_{L-1} / σ', with an error that shows it; None for other rules or too many."""
        if self.family.route != "signs" or self.arch.depth < 2:
            return None
        return sign_cells(self.scaled[-1], self.errors)

    @cached_property
    def sent_signs(self) -> tuple[np.ndarray, ...] | None:
        """Sign feedback through a linear net: D_1 … D_{L-1} with (δ_1, …, δ_{L-1}) = y(D_1, …, D_{L-1}), y free.

        None for other rules and nets, and where there are too many sign patterns to list.
        """
        if self.cells is None or not self.arch.sigma.linear:
            return None
        basis = joint_patterns([pattern for pattern, _ in self.cells], self.scaled[1:-1])
        return tuple(np.split(basis, np.cumsum(self.arch.widths[1:-1])[:-1], axis=1))

    @property
    def masks_are_free(self) -> bool:
        """True when the activation has slopes, and any residues may stand for them."""
        family = self.family
        return bool(self.arch.sigma.slopes) and not family.orthant and family.route != "signs" and self.inputs is None

    def acts_linearly(self, i: int) -> bool:
        """True when layer i (from 0) passes h on unchanged: the output, identities, and what is always switched on.

        Under the monotone rule every ReLU unit without bias behind the first layer is on: it adds positive numbers.
        """
        arch = self.arch
        always_on = self.family.orthant == "positive" and i > 0 and not arch.biases[i] and arch.activation == "relu"
        return arch.sigma.linear or i == arch.depth - 1 or always_on

    @property
    def num_parameters(self) -> int:
        """D, and for rules whose feedback moves the size of B as well: what the update fields move."""
        return self.arch.size + self.moving_size

    @property
    def dimension(self) -> int:
        """The number of coordinates of the state: the parameters, and what the optimiser adds."""
        return self.num_parameters * (2 if self.geometry == "momentum" else 1) + (self.geometry != "plain")

    @property
    def moving_size(self) -> int:
        """The number of feedback weights that are part of the state."""
        widths = self.arch.widths
        return sum(n * m for n, m in zip(widths[1:], widths[2:], strict=False)) if self.moving else 0

    @property
    def moving(self) -> bool:
        """True when B is part of the state."""
        return self.family.source == "moving"

    def shapes(self) -> list[tuple[int, ...]]:
        """The blocks of the whole state: the parameters, (their velocities), (E = e^t)."""
        return self.parameter_shapes() * (2 if self.geometry == "momentum" else 1) + [(1,)] * (self.geometry != "plain")

    def parameter_shapes(self) -> list[tuple[int, ...]]:
        """The blocks of the parameters in order: W_1, (b_1), W_2, …, then the moving B_2 … B_L."""
        shapes: list[tuple[int, ...]] = []
        widths = self.arch.widths
        for i in range(self.arch.depth):
            shapes.append((widths[i + 1], widths[i]))
            shapes += [(widths[i + 1],)] * self.arch.biases[i]
        if self.moving:
            shapes += [(widths[i + 1], widths[i]) for i in range(1, self.arch.depth)]
        return shapes

    def block_layers(self) -> list[int]:
        """The layer (from 0) that each block of :meth:`parameter_shapes` belongs to."""
        depth = self.arch.depth
        layers = [i for i in range(depth) for _ in range(1 + self.arch.biases[i])]
        return layers + (list(range(1, depth)) if self.moving else [])


def draw_feedback(
    arch: Architecture, family: Family, rng: np.random.Generator, largest: int = B_RANGE
) -> tuple[np.ndarray, ...]:
    """Random nonzero integer feedback weights (positive ones for the monotone rule)."""
    out, feedback = arch.widths[-1], [np.zeros((0, 0), dtype=object)]
    for i in range(1, arch.depth):
        shape = (out, arch.widths[i]) if family.direct else (arch.widths[i + 1], arch.widths[i])
        sign = np.ones(shape) if family.orthant == "positive" or family.source == "sign" else rng.choice([-1, 1], shape)
        size = E_RANGE if family.route == "signs" else largest
        magnitude = np.ones(shape) if family.name == "usf" else rng.integers(1, size + 1, shape)
        feedback.append((sign * magnitude).astype(int).astype(object))
    return tuple(feedback)


def draw_point(system: System, rng: np.random.Generator, near: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
    """A random state, block by block; positive weights where the rule keeps them so.

    Where laws are local to an orthant, ``near`` is a point of it.
    """
    theta = [ff.random_residues(rng, shape) for shape in system.shapes()]
    weights = range(1, len(system.parameter_shapes()))
    if system.family.orthant == "positive":
        return [np.abs(t) + 1 if t.ndim == 2 and i in weights else t for i, t in enumerate(theta)]
    if system.family.orthant and near is not None:
        sides = [np.where(block < 0, -1.0, 1.0) for block in near]
        return [(np.abs(t) + 1) * s if t.ndim == 2 else t for t, s in zip(theta, sides, strict=True)]
    return theta


def split(system: System, theta: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """The blocks of a state as (W, b, moving B), each one a layer; absent biases are None."""
    blocks = iter(theta[: len(system.parameter_shapes())])
    weights, biases = [], []
    for has_bias in system.arch.biases:
        weights.append(next(blocks))
        biases.append(next(blocks) if has_bias else None)
    return weights, biases, [None, *blocks]


def draw_data(system: System, point: Sequence[np.ndarray], count: int, rng: np.random.Generator) -> Data:
    """``count`` random samples of everything that is data."""
    arch, family = system.arch, system.family
    hidden = arch.widths[1:-1]
    if system.inputs is None:
        x = ff.random_residues(rng, (count, arch.widths[0]))
    else:
        x = system.inputs[rng.permutation(max(count, len(system.inputs)))[:count] % len(system.inputs)]
    signed = family.route == "signs" and arch.depth > 1
    blind = signed and system.cells is None
    e = _off_walls(system, count, rng) if blind else _errors(system, count, rng)
    masks = _masks(system, point, x, rng)
    x = ff.residues_of(x) if system.inputs is not None else x
    signs = _signs(system, _sent(system, e, rng), masks) if signed else []
    values = [ff.random_residues(rng, (count, n)) for n in hidden] if arch.sigma.degree is None else []
    return Data(x, e, ff.random_residues(rng, e.shape), masks, values, signs)


def _errors(system: System, count: int, rng: np.random.Generator, size: int = ff.PRIME // 2) -> np.ndarray:
    e = rng.integers(-size, size + 1, (count, system.arch.widths[-1])).astype(np.float64)
    if system.softmax:
        e[:, -1] = -e[:, :-1].sum(axis=1)
        e = ff.reduce(e)
    return e


def _off_walls(system: System, count: int, rng: np.random.Generator) -> np.ndarray:
    """Errors none of whose images vanishes by chance: laws need not hold on a set of measure zero."""
    B = system.scaled[-1]
    moving = np.any((system.errors.T @ B).astype(bool), axis=0)
    e = _errors(system, count, rng, E_RANGE)
    while True:
        sent = e.astype(int).astype(object) @ B
        hit = np.any((sent == 0) & moving, axis=1)
        if not hit.any():
            return e
        e[hit] = _errors(system, int(hit.sum()), rng, E_RANGE)


def _masks(
    system: System, point: Sequence[np.ndarray], x: np.ndarray, rng: np.random.Generator
) -> list[np.ndarray | None]:
    """Slopes per hidden layer and sample.

    Where every pattern is realised, arbitrary residues serve as masks: every field is affine in every mask.
    """
    arch = system.arch
    slopes = arch.sigma.slopes
    if slopes is None:
        return [None] * (arch.depth - 1)
    if system.inputs is not None:
        return [slope_residues(system, on) for on in patterns_at(system, point, x)]
    if system.masks_are_free:
        return [ff.random_residues(rng, (len(x), n)) for n in arch.widths[1:-1]]
    weights, _, _ = split(system, point)
    masks: list[np.ndarray | None] = []
    sign = np.zeros((len(x), arch.widths[0]))
    for i, n in enumerate(arch.widths[1:-1]):
        on = rng.integers(0, 2, (len(x), n)).astype(bool)
        if system.family.orthant and i and not arch.biases[i]:
            up = (np.maximum(sign, 0) @ (weights[i] > 0).T) + (np.maximum(-sign, 0) @ (weights[i] < 0).T)
            down = (np.maximum(sign, 0) @ (weights[i] < 0).T) + (np.maximum(-sign, 0) @ (weights[i] > 0).T)
            on = np.where((up > 0) & (down > 0), on, up > 0)
        masks.append(slope_residues(system, on))
        sign = np.where(on, 1.0, -1.0 if slopes[0] else 0.0)
    return masks


def patterns_at(system: System, point: Sequence[np.ndarray], x: np.ndarray) -> list[np.ndarray]:
    """Which units are on, per hidden layer, at the integer lift of the point for given rational inputs (exact)."""
    if system.arch.sigma.slopes is None:
        return []
    return [on for on, _, _, _ in _layers_at(system, point, x)]


def _layers_at(
    system: System, point: Sequence[np.ndarray], a: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]]:
    """Per hidden layer which units are on, h, what the layer hears, and its bias; exact."""
    low, high = system.arch.sigma.slopes or (Fraction(1), Fraction(1))
    weights, biases, _ = split(system, point)
    for W, b in zip(weights[:-1], biases[:-1], strict=True):
        h = a @ np.vectorize(int, otypes=[object])(W).T
        if b is not None:
            h = h + np.vectorize(int, otypes=[object])(b)
        on = (h > 0).astype(bool)
        yield on, h, a, b
        a = np.where(on, high * h, low * h)
        a = a if system.arch.sigma.degree == 1 else a * h


def lies_on_wall(system: System, point: Sequence[np.ndarray]) -> bool:
    """Whether for some given input a unit is neither on nor off at the point, though it would be nearby.

    A unit that hears zeros and has no bias is zero at every θ nearby, and counts as off.
    """
    if system.inputs is None or not system.arch.sigma.slopes:
        return False
    return any(
        ((h == 0) & ((a != 0).any(axis=1, keepdims=True) | (bias is not None))).any()
        for _, h, a, bias in _layers_at(system, point, system.inputs)
    )


def slope_residues(system: System, on: np.ndarray) -> np.ndarray:
    """The slope of each unit modulo p."""
    low, high = system.arch.sigma.slopes or (0, 1)
    return np.where(on, ff.residue(high), ff.residue(low))


def _sent(system: System, e: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sign(eB_L) of each error, or of a cell drawn at random where the cells are known.

    The errors of a cell are an open cone, so that the fields they give span those with this pattern and any error.
    """
    if system.cells is None:
        return np.sign((e.astype(int).astype(object) @ system.scaled[-1]).astype(np.float64))
    return np.array([pattern for pattern, _ in system.cells], dtype=np.float64)[
        rng.integers(0, len(system.cells), len(e))
    ]


def _signs(system: System, sent: np.ndarray, masks: list[np.ndarray | None]) -> list[np.ndarray]:
    """For the sign rule: sign(δ_i B_i) per hidden layer, from exact small integers (it does not depend on θ)."""
    low, high = system.arch.sigma.slopes or (Fraction(1), Fraction(1))
    common = math.lcm(Fraction(low).denominator, Fraction(high).denominator)
    signs: list[np.ndarray] = []
    carried = sent.astype(int)
    for i in reversed(range(1, system.arch.depth)):
        signs.insert(0, carried.astype(np.float64))
        if i == 1:
            break
        mask = masks[i - 1]
        slope = 1 if mask is None else np.where(mask == 1, int(high * common), int(low * common))
        delta = (carried * slope).astype(object)
        carried = np.sign((delta @ system.scaled[i - 1]).astype(np.float64)).astype(int)
    return signs


def feedback_at(system: System, point: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The constant B's at a point: as drawn, or M ⊙ sign(W) on the point's orthant."""
    if system.family.source != "sign":
        return system.B
    weights, _, _ = split(system, point)
    return (system.B[0], *(system.B[i] * np.sign(weights[i]) for i in range(1, system.arch.depth)))


def update_field(system: System, B: Sequence[Any], theta: Sequence[Any], data: Data) -> list[Any]:
    """F(θ; data), block by block like θ; θ may be dual.

    Args:
        system: the network and the rule.
        B: the constant feedback weights of :func:`feedback_at`.
        theta: the blocks of the state.
        data: n samples.

    Returns:
        Blocks of shape (n, *block shape); None where exactly zero.
    """
    arch, family = system.arch, system.family
    weights, biases, moving = split(system, theta)
    activations, slopes = [data.x], []
    for i in range(arch.depth - 1):
        h = ff.vector_matrix(activations[-1], ff.transpose(weights[i]))
        h = h if biases[i] is None else ff.add(h, biases[i])
        value = data.values[i] if data.values else None
        a, slope = arch.sigma.apply(h, data.masks[i], value)
        activations.append(a)
        slopes.append(slope)
    sources = {"weight": weights, "moving": moving}.get(family.source, B)
    signal = data.target if family.route == "direct-target" else data.e
    delta: Any = data.e
    weight_rates: list[Any] = []
    bias_rates: list[Any] = []
    for i in reversed(range(arch.depth)):
        delta = ff.scale(delta, -1.0) if i == arch.depth - 1 else delta
        weight_rates.insert(0, ff.outer(delta, activations[i]))
        bias_rates.insert(0, delta)
        if i == 0:
            break
        if family.direct:
            carried = ff.vector_matrix(-signal, sources[i])
        elif family.route == "signs":
            carried = -data.signs[i - 1]
        else:
            carried = ff.vector_matrix(delta, sources[i])
        delta = ff.times(carried, slopes[i - 1])
    blocks: list[Any] = []
    for i in range(arch.depth):
        blocks += [weight_rates[i]] + [bias_rates[i]] * arch.biases[i]
    return blocks + (weight_rates[1:] if system.moving else [])


def flat(system: System, blocks: Sequence[Any], count: int) -> np.ndarray:
    """Blocks of residues as one matrix (n, dimension)."""
    shapes = system.shapes()
    rows = [
        np.zeros((count, int(np.prod(shape))))
        if block is None
        else np.broadcast_to(block, (count, *shape)).reshape(count, -1)
        for block, shape in zip(blocks, shapes, strict=True)
    ]
    return np.concatenate(rows, axis=1)
