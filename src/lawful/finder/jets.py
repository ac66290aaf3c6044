"""The verifier's own arithmetic: polynomials in ε_1 … ε_k with every ε² = 0, modulo 2³¹ - 1, in int64.

Deliberately unlike :mod:`lawful.finder.residues`: another prime, another number type, flat lists of 2^k parts instead
of nested pairs, masks in {0, 1} instead of residues, and python-flint for the ranks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MODULUS = 2**31 - 1

Jet = list[np.ndarray]
"""Part s belongs to the product of the ε_i with bit i set in s; a constant has one part."""


def constant(x: np.ndarray) -> Jet:
    """No ε."""
    return [x % MODULUS]


def plus(a: Jet, b: Jet, sign: int = 1) -> Jet:
    """A + sign·b."""
    size = max(len(a), len(b))
    zero = np.zeros((), dtype=np.int64)
    part = [(a[s] if s < len(a) else zero, b[s] if s < len(b) else zero) for s in range(size)]
    return [(x + sign * y) % MODULUS for x, y in part]


def multiply(a: Jet, b: Jet, op: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Jet:
    """Sum over disjoint sets of ε."""
    size = max(len(a), len(b))
    parts: list[np.ndarray | None] = [None] * size
    for s, x in enumerate(a):
        for t, y in enumerate(b):
            if s & t == 0:
                old = parts[s | t]
                parts[s | t] = op(x, y) if old is None else (old + op(x, y)) % MODULUS
    return [np.zeros((), dtype=np.int64) if part is None else part for part in parts]


def elementwise(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """X y."""
    return x * y % MODULUS


def outer(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, j), (n, k) -> (n, j, k)."""
    return x[:, :, None] * y[:, None, :] % MODULUS


def rows_times(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """X (n, j) times w (j, k) or (n, j, k): products reduced before they are summed."""
    total = np.zeros((), dtype=np.int64)
    for j in range(x.shape[-1]):
        total = (total + x[..., j, None] * w[..., j, :]) % MODULUS
    return np.asarray(total)


def derivative(a: Jet, bit: int) -> Jet:
    """The coefficient of the highest ε, ``bit``."""
    return [a[s | bit] if (s | bit) < len(a) else np.zeros((), dtype=np.int64) for s in range(bit)]


def along(a: Jet, direction: Jet, bit: int) -> Jet:
    """A + ε direction with the new highest ε, ``bit``."""
    zero = np.zeros((), dtype=np.int64)
    low = [a[s] if s < len(a) else zero for s in range(bit)]
    high = [direction[s] if s < len(direction) else zero for s in range(bit)]
    return low + high
