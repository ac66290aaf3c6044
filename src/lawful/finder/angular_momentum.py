"""What momentum makes of the matrix laws: rotations of linear hidden units keep an angular momentum.

    e^{γt} (v_i W_iᵀ - W_i v_iᵀ - (B_{i+1}ᵀ v_{i+1} - v_{i+1}ᵀ B_{i+1})),   v = Ẇ, biases as a further column of W_i

Its rate is F_iW_iᵀ - B_{i+1}ᵀF_{i+1} less the transpose, and the two terms are equal. For backpropagation (B = W) this
is Noether's theorem for rotations of the hidden units; for Kolen-Pollack v_{i+1} is the velocity of B.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lawful.finder.candidates import Candidate, put
from lawful.finder.linear_laws import matching_rows
from lawful.finder.polynomials import Polynomial
from lawful.finder.symbols import Symbols


def angular_momentum(symbols: Symbols) -> Iterator[Candidate]:
    """One for each pair of units of a linear hidden layer; under direct feedback of each pair of matching rows."""
    system = symbols.system
    arch, family = system.arch, system.family
    if system.geometry != "momentum" or arch.sigma.degree != 1:
        return
    layerwise = family.route == "layer"
    for i in range(arch.depth - 1):
        n = arch.widths[i + 1]
        if not system.acts_linearly(i):
            continue
        if layerwise or (family.route == "direct-error" and i == arch.depth - 2):
            units = [_row(n, j) for j in range(n)]
            for j in range(n):
                for k in range(j + 1, n):
                    h = _own(symbols, i, units[j], units[k])
                    _above(h, symbols, i, j, k)
                    text = f"e^t·(v{i + 1}W{i + 1}ᵀ − Bᵀv{i + 2} − transpose)[{j + 1},{k + 1}], t in units of 1/γ"
                    where = f"entry ({j + 1}, {k + 1})"
                    yield Candidate("angular", f"angular momentum of layer {i + 1}, {where}", text, h, to_output=True)
        for r, (q, k) in enumerate(matching_rows(symbols, i)):
            for s, (other, m) in list(enumerate(matching_rows(symbols, i)))[r + 1 :]:
                h = _own(symbols, i, q, other)
                _combined(h, symbols, i, k, other, -1)
                _combined(h, symbols, i, m, q, 1)
                text = f"e^t·(Q v{i + 1}W{i + 1}ᵀQᵀ − K v{i + 2}Qᵀ − transpose)[{r + 1},{s + 1}], t in units of 1/γ"
                name = f"direct angular momentum of layer {i + 1}, entry ({r + 1}, {s + 1})"
                yield Candidate("angular", name, text, h, numeric=True, to_output=True)


def _row(n: int, j: int) -> list[int]:
    return [int(a == j) for a in range(n)]


def _own(symbols: Symbols, i: int, q: Sequence[int], other: Sequence[int]) -> Polynomial:
    """E ((q v_i)·(q' W_i) - (q W_i)·(q' v_i)), biases included."""
    arch, size, clock = symbols.system.arch, symbols.system.num_parameters, symbols.system.dimension - 1
    bias, h = arch.bias_at[i], {}
    columns = [*arch.weight_at[i].T, *([] if bias is None else [bias])]
    for column in columns:
        for a, x in enumerate(q):
            for b, y in enumerate(other):
                put(h, x * y, column[a] + size, column[b], clock)
                put(h, -x * y, column[a], column[b] + size, clock)
    return h


def _above(h: Polynomial, symbols: Symbols, i: int, j: int, k: int) -> None:
    """- E (B_{i+1}ᵀ v_{i+1} - its transpose)[j, k]."""
    system, size, clock = symbols.system, symbols.system.num_parameters, symbols.system.dimension - 1
    weights = system.arch.weight_at[i + 1]
    feedback = {"weight": system.arch.weight_at, "moving": symbols.moving_at}.get(
        system.family.source, symbols.feedback_at
    )[i + 1]
    moving = symbols.moving_at[i + 1] if system.moving else weights
    for o in range(len(weights)):
        put(h, -1, feedback[o, j], moving[o, k] + size, clock)
        put(h, 1, feedback[o, k], moving[o, j] + size, clock)


def _combined(h: Polynomial, symbols: Symbols, i: int, k: Sequence[int], q: Sequence[int], sign: int) -> None:
    """± E k v_{i+1} qᵀ."""
    size, clock = symbols.system.num_parameters, symbols.system.dimension - 1
    for o, x in enumerate(k):
        for b, y in enumerate(q):
            put(h, sign * x * y, symbols.system.arch.weight_at[i + 1][o, b] + size, clock)
