"""Laws of linear layers under constant feedback: errors are δ_i = eC_iᵀ, whatever the weights and the data are."""

from __future__ import annotations

from collections.abc import Iterator

import flint

from lawful.finder.candidates import Candidate, integer, left_null_space, put
from lawful.finder.polynomials import Polynomial
from lawful.finder.symbols import Symbols


def error_map(symbols: Symbols, i: int) -> flint.fmpz_mat | None:
    """C_i (n_i, m) with δ_i = e C_iᵀ when that is so whatever θ and the data are, over independent error signals.

    Linear layers: C_L = 1 (with softmax the m - 1 differences), C_i = B_{i+1}ᵀ C_{i+1}, direct rules D_iᵀ. None where
    δ_i depends on θ or on activation patterns.
    """
    system = symbols.system
    arch, family = system.arch, system.family
    last = arch.depth - 1
    C = integer(system.errors)
    if i == last:
        return C
    if system.sent_signs is not None:
        return integer(system.sent_signs[i].T)
    linear = range(i, i + 1) if family.direct else range(i, last)
    if family.source not in ("fixed", "sign") or family.route == "signs" or not all(map(system.acts_linearly, linear)):
        return None
    if family.route == "direct-target":
        return integer(system.scaled[i + 1].T)
    if family.direct:
        return integer(system.scaled[i + 1].T) * C
    for layer in reversed(range(i, last)):
        C = integer(system.scaled[layer + 1].T) * C
    return C


def moves_along(symbols: Symbols) -> Iterator[Candidate]:
    """N W_i and N b_i with N C_i = 0: "W_i moves only along the feedback"; at a softmax output N is a row of ones."""
    arch = symbols.system.arch
    for i in range(arch.depth):
        C = error_map(symbols, i)
        if C is None:
            continue
        for r, row in enumerate(left_null_space(C)):
            along = "has constant column sums" if i == arch.depth - 1 else "moves only along the feedback"
            for k in range(arch.widths[i]):
                yield _combination(symbols, i, row, r, k, f"W{i + 1} {along}")
            if arch.biases[i]:
                yield _combination(symbols, i, row, r, None, f"b{i + 1} {along}")


def _combination(symbols: Symbols, i: int, row: list[int], r: int, k: int | None, name: str) -> Candidate:
    arch, h = symbols.system.arch, {}
    bias = arch.bias_at[i]
    for j, coefficient in enumerate(row):
        if k is not None:
            put(h, coefficient, arch.weight_at[i][j, k])
        elif bias is not None:
            put(h, coefficient, bias[j])
    text = f"N{i + 1}[{r + 1},:]·" + (f"b{i + 1}" if k is None else f"W{i + 1}[:,{k + 1}]")
    where = f"row {r + 1}" if k is None else f"row {r + 1}, column {k + 1}"
    orbit = ("range", i, r, k is None)
    return Candidate("range", f"{name}, {where}", f"{text} with N{i + 1} = {row}", h, True, True, orbit)


def direct_pairs(symbols: Symbols) -> Iterator[Candidate]:
    """Laws of hidden layer i under direct feedback when layer i + 1, hidden too, acts linearly.

    With rows q, k such that q D_iᵀ = k D_{i+1}ᵀ: (qW_i)·(q'W_i) + (qb_i)(q'b_i) - k W_{i+1} q' - k' W_{i+1} q and
    q b_i - k b_{i+1}. All q occur when D_{i+1} has full row rank; otherwise those that kill D_iᵀ ker D_{i+1}ᵀ. If
    layer i has masks, only q = one neuron, with itself.
    """
    for i in range(symbols.system.arch.depth - 2):
        pairs, linear = matching_rows(symbols, i), symbols.system.acts_linearly(i)
        for r, (q, k) in enumerate(pairs):
            for s in range(r, len(pairs) if linear else r + 1):
                yield _direct_pair(symbols, i, (q, k), pairs[s], (r, s))


def matching_rows(symbols: Symbols, i: int) -> list[tuple[list[int], list[int]]]:
    """The (q, k) of :func:`direct_pairs` for hidden layer i; none for other rules and layers."""
    system = symbols.system
    arch = system.arch
    direct = (system.family.direct or system.sent_signs is not None) and arch.sigma.degree == 1
    if not direct or i >= arch.depth - 2 or not system.acts_linearly(i + 1):
        return []
    above = _direct_map(symbols, i + 1)
    return _matching_rows(_direct_map(symbols, i), above, single=not system.acts_linearly(i))


def _direct_map(symbols: Symbols, i: int) -> flint.fmpz_mat:
    """D_iᵀ restricted to the error signals there are; for sign feedback that of the signs it sends."""
    system = symbols.system
    if system.sent_signs is not None:
        return integer(system.sent_signs[i].T)
    D = integer(system.scaled[i + 1].T)
    return D if system.family.route == "direct-target" else D * integer(system.errors)


def _matching_rows(below: flint.fmpz_mat, above: flint.fmpz_mat, *, single: bool) -> list[tuple[list[int], list[int]]]:
    """A basis of the rows q for which some k has q · below = k · above, each with such a k, in whole numbers.

    With ``single`` only q that are multiples of unit vectors.
    """
    if single:
        rows = [[int(x) for x in row] for row in below.tolist()]
        pairs = []
        for j, row in enumerate(rows):
            found = _matching_rows(flint.fmpz_mat([row]), above, single=False)
            pairs += [([q[0] * (j == other) for other in range(len(rows))], k) for q, k in found]
        return pairs
    stacked = flint.fmpz_mat([list(row) for row in below.tolist()] + [[-x for x in row] for row in above.tolist()])
    n, pairs, rows = below.nrows(), [], []
    for row in left_null_space(stacked):
        q, k = row[:n], row[n:]
        if flint.fmpz_mat([*rows, q]).rank() > len(rows):
            rows.append(q)
            pairs.append((q, k))
    return pairs


def _direct_pair(
    symbols: Symbols,
    i: int,
    first: tuple[list[int], list[int]],
    second: tuple[list[int], list[int]],
    where: tuple[int, int],
) -> Candidate:
    arch = symbols.system.arch
    weight, bias, following = arch.weight_at[i], arch.bias_at[i], arch.weight_at[i + 1]
    h: Polynomial = {}
    for a, x in enumerate(first[0]):
        for b, y in enumerate(second[0]):
            if x * y:
                for m in range(arch.widths[i]):
                    put(h, x * y, weight[a, m], weight[b, m])
                if bias is not None:
                    put(h, x * y, bias[a], bias[b])
    for q, k in ((first[0], second[1]), (second[0], first[1])):
        for b, y in enumerate(q):
            for o, z in enumerate(k):
                put(h, -y * z, following[o, b])
    r, s = where
    name = f"direct matrix law of layer {i + 1}, entry ({r + 1}, {s + 1})"
    text = f"(Q(W{i + 1}W{i + 1}ᵀ)Qᵀ − (K W{i + 2} Qᵀ + its transpose))[{r + 1},{s + 1}], Q D{i + 1}ᵀ = K D{i + 2}ᵀ"
    return Candidate("direct matrix", name, text, h, numeric=True, to_output=True)


def bias_combinations(symbols: Symbols) -> Iterator[Candidate]:
    """Σ_i N_i b_i with Σ_i N_i C_i = 0 over the layers whose errors are linear in the error signal, whatever θ is.

    Every law linear in the biases; those of one layer, and b_i - B_{i+1}ᵀb_{i+1}, come with names of their own before.
    """
    arch = symbols.system.arch
    blocks = [(i, _signal_map(symbols, i)) for i in range(arch.depth) if arch.biases[i]]
    known = [(i, C) for i, C in blocks if C is not None]
    rows = [row for _, C in known for row in C.tolist()]
    for r, row in enumerate(left_null_space(flint.fmpz_mat(rows)) if rows else []):
        h: Polynomial = {}
        start, terms = 0, []
        for i, C in known:
            part = row[start : start + C.nrows()]
            start += C.nrows()
            for j, x in enumerate(part):
                put(h, x, arch.bias_at[i][j])  # pyright: ignore[reportOptionalSubscript]
            terms += [f"{part}·b{i + 1}"] * any(part)
        yield Candidate("shift", f"bias combination {r + 1}", " + ".join(terms), h, numeric=True, to_output=True)


def _signal_map(symbols: Symbols, i: int) -> flint.fmpz_mat | None:
    """C_i over all free signals together: the error, and what hidden layers hear besides it (targets, signs)."""
    system = symbols.system
    C, own = error_map(symbols, i), system.family.route in ("signs", "direct-target")
    if C is None or not own:
        return C
    hidden = next((M for k in range(system.arch.depth - 1) if (M := error_map(symbols, k)) is not None), None)
    width = 0 if hidden is None else hidden.ncols()
    output = i == system.arch.depth - 1
    zero_before, zero_after = (0, width) if output else (system.errors.shape[1], 0)
    return flint.fmpz_mat([[0] * zero_before + [int(x) for x in row] + [0] * zero_after for row in C.tolist()])
