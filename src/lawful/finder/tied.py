"""Networks whose layers share, drop or fix weights: convolutions, residual streams, unrolled recurrence.

A fully connected layer whose entries are variables (possibly the same one in many places), zeros, or ones. The update
of a variable is the sum over its places; the feedback weight B has the same pattern, ones included, so errors travel
through identity paths unchanged. Small networks only: laws come from the polynomial null space, each expanded to zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations_with_replacement
from typing import Any, Final

import numpy as np

from lawful.errors import SettingError
from lawful.finder import polynomials as poly
from lawful.finder import residues as ff
from lawful.finder.lie_algebra import MARGIN, MAX_LEVEL, nested_bracket
from lawful.finder.nullspace import MAX_MONOMIALS, rational_polynomial
from lawful.finder.polynomials import Polynomial

ZERO: Final = -1
ONE: Final = -2


@dataclass(frozen=True)
class TiedNetwork:
    """Layers as index arrays (out, in): entry >= 0 is a variable, ZERO or ONE a constant.

    Attributes:
        name: for tables.
        layers: one array a layer; the output layer last.
        linear: per hidden layer, which units have no ReLU.
    """

    name: str
    layers: tuple[np.ndarray, ...]
    linear: tuple[np.ndarray, ...]

    @cached_property
    def size(self) -> int:
        """D."""
        return 1 + max(int(layer.max()) for layer in self.layers)


@dataclass(frozen=True)
class TiedSearch:
    """Independent laws found and proved, the bound D - Lie rank, and the laws as text; certified when equal."""

    network: str
    rule: str
    dimension: int
    count: int
    bound: int
    laws: tuple[str, ...]

    @property
    def certified(self) -> bool:
        """These are all."""
        return self.count == self.bound


def _matrix(theta: Any, layer: np.ndarray) -> Any:
    place = np.maximum(layer, 0)
    gathered = ff.linear(lambda t: t[..., place] * (layer >= 0), theta)
    return ff.add(gathered, (layer == ONE).astype(np.float64))


def _collect(rate: Any, layer: np.ndarray, size: int) -> Any:
    """Sum the entries of (n, out, in) that belong to the same variable: (n, D)."""
    belongs = np.zeros((layer.size, size))
    at = np.flatnonzero(layer.ravel() >= 0)
    belongs[at, layer.ravel()[at]] = 1
    return ff.linear(lambda g: ff.product(g.reshape(len(g), -1), belongs), rate)


def _field(network: TiedNetwork, rule: str, B: np.ndarray, data: Sequence[Any], theta: Sequence[Any]) -> list[Any]:
    x, e, masks = data
    weights = [_matrix(theta[0], layer) for layer in network.layers]
    back = weights if rule == "bp" else [_matrix(B, layer) for layer in network.layers]
    entering: list[Any] = [x]
    for weight, mask in zip(weights[:-1], masks, strict=True):
        entering.append(ff.times(ff.vector_matrix(entering[-1], ff.transpose(weight)), mask))
    delta: Any = -e
    total: Any = None
    for i in reversed(range(len(weights))):
        total = ff.add(total, _collect(ff.outer(delta, entering[i]), network.layers[i], network.size))
        if i:
            delta = ff.times(ff.vector_matrix(delta, back[i]), masks[i - 1])
    return [total]


def _draw(network: TiedNetwork, count: int, rng: np.random.Generator) -> tuple[Any, Any, list[np.ndarray]]:
    x = ff.random_residues(rng, (count, network.layers[0].shape[1]))
    e = ff.random_residues(rng, (count, network.layers[-1].shape[0]))
    masks = [np.where(on, 1.0, ff.random_residues(rng, (count, len(on)))) for on in network.linear]
    return x, e, masks


def lie_rank_of_tied(network: TiedNetwork, rule: str, seed: int = 0) -> int:
    """The exact rank modulo p, level by level until one adds nothing."""
    rng = np.random.default_rng(seed)
    theta, B = ff.random_residues(rng, (network.size,)), ff.random_residues(rng, (network.size,))
    echelon = ff.Echelon(network.size)
    for level in range(MAX_LEVEL + 1):
        before = echelon.rank
        while True:
            count = network.size - echelon.rank + MARGIN
            fields = [partial(_field, network, rule, B, _draw(network, count, rng)) for _ in range(level + 1)]
            rows = nested_bracket(fields, [theta])[0]
            gained = 0 if rows is None else len(echelon.add(rows))
            if gained < count - MARGIN // 2:
                break
        if echelon.rank == network.size or (level and echelon.rank == before):
            break
    return echelon.rank


def find_laws_of_tied(network: TiedNetwork, rule: str, *, degree: int = 2, seed: int = 0) -> TiedSearch:
    """All polynomial laws up to ``degree``, and the bound.

    Args:
        network: the layers.
        rule: "bp" or "fa".
        degree: in the weights and, for FA, the symbols of B.
        seed: of the random points.

    Raises:
        SettingError: another rule, or too many monomials.
    """
    if rule not in ("bp", "fa"):
        raise SettingError(f"find_laws_of_tied: rule must be bp or fa; got {rule!r}")
    size = network.size
    count = size if rule == "bp" else 2 * size
    basis = [m for d in range(1, degree + 1) for m in combinations_with_replacement(range(count), d) if m[0] < size]
    if len(basis) > MAX_MONOMIALS:
        raise SettingError(f"find_laws_of_tied: {len(basis)} monomials, at most {MAX_MONOMIALS} are searched")
    rng = np.random.default_rng([seed, 7])
    echelon = ff.Echelon(len(basis))
    echelon.add(_conditions(network, rule, basis, len(basis) + 24, rng))
    found = [rational_polynomial(vector, basis) for vector in echelon.null_space()]
    proved = [h for h in sorted(found, key=len) if h and not rate_of_tied(network, rule, h)]
    values = ff.random_residues(rng, (2 * size,))
    gradients = ff.Echelon(size)
    kept = [h for h in proved if gradients.add(_gradient(h, values, size)[None])]
    names = [f"w{i + 1}" for i in range(size)] + [f"B{i + 1}" for i in range(size)]
    bound = size - lie_rank_of_tied(network, rule, seed)
    texts = tuple(poly.written(h, names.__getitem__) for h in kept)
    return TiedSearch(network.name, rule, size, len(kept), bound, texts)


def _conditions(
    network: TiedNetwork, rule: str, basis: Sequence[tuple[int, ...]], count: int, rng: np.random.Generator
) -> np.ndarray:
    size = network.size
    values = ff.random_residues(rng, (count, 2 * size))
    moved = _field(network, rule, values[:, size:], _draw(network, count, rng), [values[:, :size]])[0]
    rates = np.concatenate([moved, np.zeros((count, size))], axis=1)
    columns = np.zeros((count, len(basis)))
    for column, monomial in enumerate(basis):
        for position, number in enumerate(monomial):
            term = rates[:, number]
            for other in (*monomial[:position], *monomial[position + 1 :]):
                term = ff.reduce(term * values[:, other])
            columns[:, column] = ff.reduce(columns[:, column] + term)
    return columns


def _gradient(h: Polynomial, values: np.ndarray, size: int) -> np.ndarray:
    row = np.zeros(size)
    for number, slope in poly.gradient(h, lambda n: n < size).items():
        total = 0
        for monomial, coefficient in slope.items():
            term = int(ff.residue(coefficient))
            for other in monomial:
                term = term * int(values[other]) % ff.PRIME
            total += term
        row[number] = ff.residue(total)
    return row


def rate_of_tied(network: TiedNetwork, rule: str, h: Polynomial) -> Polynomial:
    """∇h · F expanded over every weight, input, error and mask; empty exactly for laws."""
    size, fresh = network.size, iter(range(2 * network.size, 10**9))

    def entry(value: int, shift: int = 0) -> Polynomial:
        return poly.constant(int(value == ONE)) if value < 0 else poly.variable(int(value) + shift)

    entering = [[poly.variable(next(fresh)) for _ in range(network.layers[0].shape[1])]]
    masks = [[poly.constant(1) if on else poly.variable(next(fresh)) for on in layer] for layer in network.linear]
    for layer, mask in zip(network.layers[:-1], masks, strict=True):
        h_i = [poly.total_of(poly.times(entry(v), a) for v, a in zip(row, entering[-1], strict=True)) for row in layer]
        entering.append([poly.times(s, value) for s, value in zip(mask, h_i, strict=True)])
    delta = [poly.variable(next(fresh)) for _ in range(len(network.layers[-1]))]
    rates: list[Polynomial] = [{} for _ in range(size)]
    for i in reversed(range(len(network.layers))):
        layer = network.layers[i]
        for (j, k), v in np.ndenumerate(layer):
            if v >= 0:
                poly.add_into(rates[v], poly.times(delta[j], entering[i][k]), -1)
        if i:
            shift = 0 if rule == "bp" else size
            sent = [
                poly.total_of(poly.times(d, entry(v, shift)) for d, v in zip(delta, column, strict=True))
                for column in layer.T
            ]
            delta = [poly.times(s, value) for s, value in zip(masks[i - 1], sent, strict=True)]
    slopes = poly.gradient(h, lambda n: n < size)
    return poly.total_of(poly.times(slope, rates[number]) for number, slope in slopes.items())


def convolution(positions: int, channels: Sequence[int], kernel: int, outputs: int) -> TiedNetwork:
    """1-d convolutions with stride 1 and ReLU, then a linear readout of every channel and position."""
    layers, start, length = [], 0, positions
    for read, write in zip(channels, channels[1:], strict=False):
        shorter = length - kernel + 1
        layer = np.full((write * shorter, read * length), ZERO)
        for o, c, t, s in np.ndindex(write, read, kernel, shorter):
            layer[o * shorter + s, c * length + s + t] = start + (o * read + c) * kernel + t
        layers.append(layer)
        start, length = start + write * read * kernel, shorter
    layers.append(start + np.arange(outputs * channels[-1] * length).reshape(outputs, -1))
    linear = tuple(np.zeros(len(layer), dtype=bool) for layer in layers[:-1])
    name = f"conv {'-'.join(map(str, channels))}, kernel {kernel}, {positions} positions, {outputs} outputs"
    return TiedNetwork(name, tuple(layers), linear)


def residual(inputs: int, stream: int, hidden: int, outputs: int) -> TiedNetwork:
    """Embedding, one residual block x + W_2 ReLU(W_1 x) without normalisation, readout."""
    sizes = [stream * inputs, hidden * stream, stream * hidden, outputs * stream]
    a, b, c, d = (start + np.arange(n) for n, start in zip(sizes, np.cumsum([0, *sizes[:-1]]), strict=True))
    identity = np.where(np.eye(stream, dtype=bool), ONE, ZERO)
    inner = np.concatenate([b.reshape(hidden, stream), identity])
    joined = np.concatenate([c.reshape(stream, hidden), identity], axis=1)
    layers = (a.reshape(stream, inputs), inner, joined, d.reshape(outputs, stream))
    linear = (np.ones(stream, bool), np.arange(hidden + stream) >= hidden, np.ones(stream, bool))
    return TiedNetwork(f"residual {inputs}-{stream}, block {hidden}, {outputs} outputs", layers, linear)


def recurrent(inputs: int, hidden: int, steps: int, outputs: int) -> TiedNetwork:
    """ReLU RNN, h_0 = 0, backpropagation through all steps, one readout at the end; inputs wait on identity units."""
    enter = np.arange(hidden * inputs).reshape(hidden, inputs)
    loop = hidden * inputs + np.arange(hidden * hidden).reshape(hidden, hidden)
    layers, linear = [], []
    for step in range(steps):
        waiting = (steps - 1 - step) * inputs
        layer = np.full((hidden + waiting, hidden * (step > 0) + waiting + inputs), ZERO)
        carried = hidden * (step > 0)
        layer[:hidden, :carried] = loop[:, :carried]
        layer[:hidden, carried : carried + inputs] = enter
        layer[hidden + np.arange(waiting), carried + inputs + np.arange(waiting)] = ONE
        layers.append(layer)
        linear.append(np.arange(hidden + waiting) >= hidden)
    readout = hidden * (inputs + hidden) + np.arange(outputs * hidden).reshape(outputs, hidden)
    return TiedNetwork(f"RNN {inputs}-{hidden}, {steps} steps, {outputs} outputs", (*layers, readout), tuple(linear))
