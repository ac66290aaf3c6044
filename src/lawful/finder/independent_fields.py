"""The verifier's own update fields and brackets, in the arithmetic of :mod:`lawful.finder.jets`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from lawful.finder import jets
from lawful.finder.fields import System, patterns_at
from lawful.finder.jets import MODULUS, Jet

_ROWS = 256
Field = Callable[[list[Jet]], list[Jet]]


def bracket_matrix(
    system: System, state: list[np.ndarray], B: list[np.ndarray], level: int, count: int, rng: np.random.Generator
) -> np.ndarray:
    """``count`` brackets [F, [F, …]] of ``level + 1`` fields each, one a row, modulo 2³¹ - 1."""
    pieces = []
    for start in range(0, count, _ROWS):
        rows = min(_ROWS, count - start)
        data = [_draw(system, state, rows, rng) for _ in range(level + 1)]
        fields: list[Field] = [lambda theta, d=d: _state_field(system, B, theta, d) for d in data]
        blocks = _bracket(fields, [jets.constant(np.asarray(block)) for block in state], 1)
        columns = [
            np.broadcast_to(block[0], (rows, *shape)).reshape(rows, -1)
            for block, shape in zip(blocks, system.shapes(), strict=True)
        ]
        pieces.append(np.concatenate(columns, axis=1) % MODULUS)
    return np.concatenate(pieces)


def _bracket(fields: Sequence[Field], theta: list[Jet], bit: int) -> list[Jet]:
    """[f, g] = Dg·f - Df·g, with ``bit`` the next unused ε."""
    f, *rest = fields
    if not rest:
        return f(theta)
    u, v = f(theta), _bracket(rest, theta, bit)
    forward = _bracket(rest, [jets.along(t, d, bit) for t, d in zip(theta, u, strict=True)], bit * 2)
    back = f([jets.along(t, d, bit) for t, d in zip(theta, v, strict=True)])
    return [jets.plus(jets.derivative(a, bit), jets.derivative(b, bit), -1) for a, b in zip(forward, back, strict=True)]


def _state_field(system: System, B: list[np.ndarray], state: list[Jet], data: dict[str, Any]) -> list[Jet]:
    size = len(system.parameter_shapes())
    force = _field(system, B, state[:size], data)
    if system.geometry == "plain":
        return force
    if system.geometry == "decay":
        rates = [system.decay[layer] for layer in system.block_layers()]
        return [jets.plus(f, t, -r) for f, t, r in zip(force, state[:size], rates, strict=True)] + [state[-1]]
    velocity = state[size : 2 * size]
    return velocity + [jets.plus(f, v, -1) for f, v in zip(force, velocity, strict=True)] + [state[-1]]


def _draw(system: System, state: list[np.ndarray], rows: int, rng: np.random.Generator) -> dict[str, Any]:
    """Inputs, errors, targets, masks in {0, 1} or {slope, 1}, carried signs and free activation values."""
    arch, family = system.arch, system.family
    x = rng.integers(0, MODULUS, (rows, arch.widths[0]))
    e = _errors(system, rows, rng)
    low, high = arch.sigma.slopes or (Fraction(1), Fraction(1))
    if system.inputs is not None:
        chosen = rng.integers(0, len(system.inputs), rows)
        p = MODULUS
        exact = [[v.numerator * pow(v.denominator, -1, p) % p for v in row] for row in system.inputs]
        x = np.array(exact, dtype=np.int64)[chosen]
        on = [pattern[chosen] for pattern in patterns_at(system, [s.astype(np.float64) for s in state], system.inputs)]
    else:
        on = _patterns(system, state, rows, rng)
    residue = [int(v.numerator * pow(v.denominator, -1, MODULUS) % MODULUS) for v in (low, high)]
    masks = [np.where(pattern, residue[1], residue[0]) for pattern in on]
    signs: list[np.ndarray] = []
    delta = e.astype(object)
    for i in reversed(range(1, arch.depth)) if family.route == "signs" else ():
        sent = delta @ system.exact[i]
        carried = np.where(sent > 0, 1, np.where(sent < 0, -1, 0))
        signs.insert(0, carried)
        delta = carried.astype(object)
        if on:
            delta = delta * np.where(on[i - 1], int(high * 100), int(low * 100)).astype(object)
    values = [rng.integers(0, MODULUS, (rows, n)) for n in arch.widths[1:-1]]
    y = rng.integers(0, MODULUS, e.shape)
    return {"x": x, "e": (e % MODULUS).astype(np.int64), "y": y, "masks": masks, "signs": signs, "values": values}


def _errors(system: System, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Random errors; for sign feedback none with an image of zero, and half of them from cells that are listed.

    Images of zero have measure zero; random errors may miss a narrow cell.
    """
    e = rng.integers(-(2**20), 2**20 + 1, (rows, system.arch.widths[-1]))
    if system.softmax:
        e[:, -1] = -e[:, :-1].sum(axis=1)
    if system.family.route == "signs" and system.arch.depth > 1:
        B = system.exact[-1]
        zero = ((e.astype(object) @ B) == 0) & np.array([any(column) for column in (system.errors.T @ B).T])
        again = zero.any(axis=1)
        if again.any():
            e[again] = _errors(system, int(again.sum()), rng)
        if system.cells is not None:
            e = e.astype(object)
            shown = [witness for _, witness in system.cells]
            for row in range(0, rows, 2):
                e[row] = shown[int(rng.integers(0, len(shown)))]
    return e


def _patterns(system: System, state: list[np.ndarray], rows: int, rng: np.random.Generator) -> list[np.ndarray]:
    arch = system.arch
    if arch.sigma.slopes is None:
        return []
    weights, on, leaky = [block for block in state if block.ndim == 2], [], arch.sigma.slopes[0] != 0
    for i, n in enumerate(arch.widths[1:-1]):
        pattern = rng.integers(0, 2, (rows, n)).astype(bool)
        if system.family.orthant and i and not arch.biases[i]:
            previous = np.where(on[-1], 1, -1 if leaky else 0)
            pushes = previous[:, None, :] * np.where(weights[i] < 0, -1, 1)
            up, down = (pushes > 0).any(axis=2), (pushes < 0).any(axis=2)
            pattern = np.where(up & down, pattern, up)
        on.append(pattern)
    return on


def _field(system: System, B: list[np.ndarray], theta: list[Jet], data: dict[str, Any]) -> list[Jet]:
    arch, family = system.arch, system.family
    remaining = list(theta)
    weights: list[Jet] = []
    biases: list[Jet | None] = []
    for biased in arch.biases:
        weights.append(remaining.pop(0))
        biases.append(remaining.pop(0) if biased else None)
    entering, slopes = [jets.constant(data["x"])], []
    for i in range(arch.depth - 1):
        turned = [np.swapaxes(part, -1, -2) if part.ndim else part for part in weights[i]]
        h = jets.multiply(entering[-1], turned, _rows_times)
        bias = biases[i]
        h = h if bias is None else jets.plus(h, bias)
        a, slope = _activate(system, i, h, data)
        entering.append(a)
        slopes.append(slope)
    delta: Jet = jets.constant(-data["e"])
    rates: list[list[Jet]] = []
    for i in reversed(range(arch.depth)):
        rates.insert(0, [jets.multiply(delta, entering[i], _outer)] + [delta] * arch.biases[i])
        if i == 0:
            break
        if family.route == "signs":
            sent = jets.constant(-data["signs"][i - 1])
        elif family.direct:
            signal = data["y" if family.route == "direct-target" else "e"]
            sent = [jets.rows_times(-signal % MODULUS, B[i])]
        else:
            back = weights[i] if family.source == "weight" else [B[i]]
            back = remaining[i - 1] if family.source == "moving" else back
            sent = jets.multiply(delta, back, _rows_times)
        delta = jets.multiply(sent, slopes[i - 1], jets.elementwise)
    blocks = [block for layer in rates for block in layer]
    return blocks + ([layer[0] for layer in rates[1:]] if system.moving else [])


def _activate(system: System, i: int, h: Jet, data: dict[str, Any]) -> tuple[Jet, Jet]:
    sigma = system.arch.sigma
    if sigma.degree is None:
        return _by_ode(h, data["values"][i], sigma.name)
    mask = jets.constant(data["masks"][i] if data["masks"] else np.ones((), dtype=np.int64))
    once = jets.multiply(h, mask, jets.elementwise)
    if sigma.degree == 1:
        return once, mask
    return jets.multiply(once, h, jets.elementwise), jets.plus(once, once)


def _by_ode(h: Jet, value: np.ndarray, name: str) -> tuple[Jet, Jet]:
    """A and σ' = slope(a) where a' = slope(a) h', one ε at a time."""
    a = jets.constant(value)
    bit = 1
    while bit < len(h):
        direction = jets.multiply(_slope(a, name), jets.derivative(h, bit)[:bit], jets.elementwise)
        a = jets.along(a, direction, bit)
        bit *= 2
    return a, _slope(a, name)


def _slope(a: Jet, name: str) -> Jet:
    square = jets.multiply(a, a, jets.elementwise)
    first = a if name == "sigmoid" else jets.constant(np.ones((), dtype=np.int64))
    return jets.plus(first, square, -1)


def _rows_times(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return jets.rows_times(x, w) if x.ndim and w.ndim else np.zeros((), dtype=np.int64)


def _outer(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return jets.outer(x, y) if x.ndim and y.ndim else np.zeros((), dtype=np.int64)
