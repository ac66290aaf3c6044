"""Closed formulas for the number of laws of linear networks, where there are any."""

from __future__ import annotations

from collections.abc import Sequence


def linear_feedback_alignment(widths: Sequence[int]) -> int:
    """Independent laws of FA on a linear net without biases, generic B.

    D - n_0ρ_1 - Σ_{i<L} [n_i(ρ_{i+1} - ρ_i) + ρ_i(ρ_i - 1)/2],   ρ_i = min(n_i, …, n_{L-1}, m), ρ_L = m.

    >>> linear_feedback_alignment([3, 4, 4, 3])
    25
    """
    n, m, last = list(widths), widths[-1], len(widths) - 1
    rho = [0, *(min(*n[i:last], m) for i in range(1, last)), m]
    size = sum(a * b for a, b in zip(n, n[1:], strict=False))
    rank = n[0] * rho[1]
    for i in range(1, last):
        rank += n[i] * (rho[i + 1] - rho[i]) + rho[i] * (rho[i] - 1) // 2
    return size - rank


def linear_direct_feedback(widths: Sequence[int]) -> int:
    """Independent laws of DFA on a linear net without biases, generic D_i.

    Σ_{i<L} [ν_i n_{i-1} + s_i(s_i + 1)/2 - ν_i(ν_i + 1)/2] with ν_i = n_i - min(n_i, m) rows NW_i that never move,
    and s_i = n_i - min(n_i, z_{i+1}), z_i = m - min(n_i, m) (z_L = 0) the q with qD_iᵀ = kD_{i+1}ᵀ for some k.

    Equal to feedback alignment when every hidden width is >= m, fewer otherwise.

    >>> linear_direct_feedback([3, 4, 4, 3]), linear_direct_feedback([3, 2, 2, 3])
    (25, 4)
    """
    n, m, last = list(widths), widths[-1], len(widths) - 1
    total = 0
    for i in range(1, last):
        still = n[i] - min(n[i], m)
        lost = m - min(n[i + 1], m) if i + 1 < last else 0
        matched = n[i] - min(n[i], lost)
        total += still * n[i - 1] + matched * (matched + 1) // 2 - still * (still + 1) // 2
    return total
