"""Closed formulas for the number of laws of linear networks under constant feedback.

A linear net whose errors are δ_i = eD_i, D_i (m, n_i) constant, is driven through few coordinates (docs/law-counts.md):
W_i = W_i(0) - D_iᵀV_iᵀ, and of the V_i only so much counts as the D_i let through.
"""

from __future__ import annotations

from collections.abc import Sequence

import flint
import numpy as np


def reduced_dimension(widths: Sequence[int], ranks: Sequence[int], overlaps: Sequence[int]) -> int:
    """An upper bound of the Lie rank without biases, and its value wherever it was counted at generic D_i.

    n_0d_1 + Σ_{i<L} [c_i(c_i - 1)/2 + (d_i - c_i)c_i + α_i(d_{i+1} - c_i)],   α_i = min(n_i, α_{i-1} + d_i), α_0 = n_0

    Args:
        widths: n_0, …, n_L.
        ranks: d_1, …, d_L, the ranks of the D_i.
        overlaps: c_1, …, c_{L-1}, the dimension of the intersection of the column spaces of D_i and D_{i+1}.
    """
    n, span, total = list(widths), widths[0], widths[0] * ranks[0]
    for i, (d, following, c) in enumerate(zip(ranks, ranks[1:], overlaps, strict=False), start=1):
        span = min(n[i], span + d)
        total += c * (c - 1) // 2 + (d - c) * c + span * (following - c)
    return total


def linear_feedback_alignment(widths: Sequence[int], bias: bool = False) -> int:
    """Independent laws of FA on a linear net, generic B: d_i = c_i = ρ_i = min(n_i, …, n_{L-1}, m), d_L = m.

    >>> linear_feedback_alignment([3, 4, 4, 3]), linear_feedback_alignment([3, 4, 1], bias=True)
    (25, 17)
    """
    n, m, last = list(widths), widths[-1], len(widths) - 1
    rho = [min(*n[i:last], m) for i in range(1, last)] + [m]
    return _size(n, bias) - reduced_dimension(n, rho, rho[:-1]) - m * bias


def linear_direct_feedback(widths: Sequence[int], bias: bool = False) -> int:
    """Independent laws of DFA on a linear net, generic D_i: d_i = min(n_i, m), c_i = max(0, d_i + d_{i+1} - m).

    Equal to feedback alignment when every hidden width is >= m, fewer otherwise.

    >>> linear_direct_feedback([3, 4, 4, 3]), linear_direct_feedback([3, 2, 2, 3])
    (25, 4)
    """
    n, m = list(widths), widths[-1]
    ranks = [min(k, m) for k in n[1:]]
    overlaps = [max(0, a + b - m) for a, b in zip(ranks, ranks[1:], strict=False)]
    return _size(n, bias) - reduced_dimension(n, ranks, overlaps) - m * bias


def linear_constant_feedback(widths: Sequence[int], maps: Sequence[np.ndarray], bias: bool) -> int:
    """At least so many independent laws has a linear net with the given D_1, …, D_L, whole numbers of shape (M, n_i).

    Args:
        widths: n_0, …, n_L.
        maps: D_i; FA: C_iᵀ, the output: the identity; other signals than the output error have rows of their own.
        bias: every layer has one.
    """
    ranks = [_rank(D) for D in maps]
    pairs = zip(ranks, ranks[1:], maps, maps[1:], strict=False)
    overlaps = [a + b - _rank(np.concatenate([D, E], axis=1)) for a, b, D, E in pairs]
    moved = _rank(np.concatenate(maps, axis=1)) if bias else 0
    return _size(widths, bias) - reduced_dimension(widths, ranks, overlaps) - moved


def _size(n: Sequence[int], bias: bool) -> int:
    return sum((a + bias) * b for a, b in zip(n, n[1:], strict=False))


def _rank(D: np.ndarray) -> int:
    return int(flint.fmpz_mat([[int(x) for x in row] for row in D]).rank())
