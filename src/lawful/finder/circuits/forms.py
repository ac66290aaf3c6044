"""The building blocks of known laws: rows and columns of each map, of which laws are sums with small coefficients.

    rows     R(j, k) = Σ_m W[j,m] W[k,m] + b_j b_k
    columns  C(j, k) = Σ_o B[o,j] W[o,k] + B[o,k] W[o,j]     (backpropagation: W W, Kolen-Pollack: B B)

R − C of consecutive maps is a neuron or matrix law, R_Q − R_K a query-key law, R_V − C_O a value-output law, R of a
norm's scale minus C of its readers a norm law, a sum of R's alone the scale law in front of a norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lawful.finder.circuits.circuit import Map
from lawful.finder.circuits.fields import System
from lawful.finder.polynomials import Polynomial, add_into, plus


@dataclass(frozen=True)
class Form:
    """One building block.

    Attributes:
        map: whose rows or columns.
        side: "row", "column", or "single" for one variable.
        j: channel.
        k: channel, >= j.
        text: in the letters of the theory.
        polynomial: in the symbols of the system.
    """

    map: Map
    side: str
    j: int
    k: int
    text: str
    polynomial: Polynomial


def forms(system: System) -> list[Form]:
    """Rows of every map, then columns of every map that has a B."""
    fed = set(system.circuit.feedback.tolist())
    made = [form for m in system.circuit.maps for form in _rows(m)]
    for m in system.circuit.maps:
        if m.weight_at.ndim > 1 and int(m.weight_at.flat[0]) in fed:
            made += list(_columns(system, m))
    return made


def _rows(m: Map) -> Iterator[Form]:
    channels = len(m.weight_at)
    for j in range(channels):
        for k in range(j, channels if m.weight_at.ndim > 1 else j + 1):
            left, right = np.atleast_1d(m.weight_at[j]).ravel(), np.atleast_1d(m.weight_at[k]).ravel()
            if m.bias_at is not None:
                left, right = np.append(left, m.bias_at[j]), np.append(right, m.bias_at[k])
            yield Form(m, "row", j, k, _row_text(m, j, k), _pairs(left, right, Fraction(1, 1 + (j == k))))


def _columns(system: System, m: Map) -> Iterator[Form]:
    shift, source = system.circuit.size, system.family.source
    by_channel = np.moveaxis(m.weight_at, 1, 0).reshape(m.weight_at.shape[1], -1)
    for j in range(len(by_channel)):
        for k in range(j, len(by_channel)):
            half = Fraction(1, 1 + (j == k))
            left, right = by_channel[j], by_channel[k]
            if source in ("weight", "moving"):
                moved = shift if source == "moving" else 0
                h = _pairs(left + moved, right + moved, half)
            else:
                h = plus(_pairs(left + shift, right, half), _pairs(right + shift, left, half))
            yield Form(m, "column", j, k, _column_text(m, j, k, source), h)


def singles(system: System) -> list[Form]:
    """Every coordinate of the state on its own, for laws that are linear."""
    owner = {int(v): m for m in system.circuit.maps for at in (m.weight_at, m.bias_at) if at is not None
             for v in at.ravel()}  # fmt: skip
    size = system.circuit.size
    return [Form(owner[int(v) % size], "single", int(v), int(v), system.names[v], {(int(v),): 1})
            for v in system.state]  # fmt: skip


def _pairs(left: np.ndarray, right: np.ndarray, factor: Fraction) -> Polynomial:
    h: Polynomial = {}
    for a, b in zip(left, right, strict=True):
        add_into(h, {tuple(sorted((int(a), int(b)))): factor})
    return h


def _row_text(m: Map, j: int, k: int) -> str:
    if m.weight_at.ndim == 1:
        return f"½{m.weight}[{j + 1}]²" + (f" + ½{m.bias}[{j + 1}]²" if m.bias else "")
    if j == k:
        return f"½‖{m.weight}[{j + 1}]‖²" + (f" + ½{m.bias}[{j + 1}]²" if m.bias else "")
    bias = f" + {m.bias}[{j + 1}]·{m.bias}[{k + 1}]" if m.bias else ""
    return f"⟨{m.weight}[{j + 1}], {m.weight}[{k + 1}]⟩{bias}"


def _column_text(m: Map, j: int, k: int, source: str) -> str:
    W, B = m.weight, {"weight": m.weight, "sign": f"S({m.weight})"}.get(source, f"B({m.weight})")
    if source in ("weight", "moving"):
        return f"½‖{B}[:,{j + 1}]‖²" if j == k else f"⟨{B}[:,{j + 1}], {B}[:,{k + 1}]⟩"
    if j == k:
        return f"⟨{B}[:,{j + 1}], {W}[:,{j + 1}]⟩"
    return f"⟨{B}[:,{j + 1}], {W}[:,{k + 1}]⟩ + ⟨{B}[:,{k + 1}], {W}[:,{j + 1}]⟩"


Part = tuple[Fraction, Form]


def formula_of(parts: Sequence[Part]) -> str:
    """The sum as text, the first term positive."""
    text = ""
    for c, form in parts:
        factor = "" if abs(c) == 1 else f"{abs(c)}·"
        compound = " + " in form.text and (factor or c < 0)
        body = f"{factor}({form.text})" if compound else factor + form.text
        text += ("− " * (c < 0) if not text else " − " if c < 0 else " + ") + body
    return text


def kind_and_name(parts: Sequence[Part]) -> tuple[str, str]:
    """What a law is called, from the building blocks it is made of."""
    first = parts[0][1]
    if first.side == "single":
        return _linear_name(parts)
    rows = list(dict.fromkeys(form.map.name for _, form in parts if form.side == "row"))
    columns = list(dict.fromkeys(form.map.name for _, form in parts if form.side == "column"))
    diagonal, one = all(form.j == form.k for _, form in parts), len({(form.j, form.k) for _, form in parts}) == 1
    entry = f"channel {first.j + 1}" if first.j == first.k else f"entry ({first.j + 1}, {first.k + 1})"
    if not columns and len(parts) == 2 and one and len(rows) == 2 and parts[0][0] == -parts[1][0]:
        kind, what = "query-key", f"query-key law of {rows[0]} and {rows[1]}"
    elif not columns and diagonal and len({c for c, _ in parts}) == 1:
        kind, what = "scale", f"scale law of {' and '.join(rows)} in front of a norm"
        entry = entry if one else "all channels"
    elif diagonal and any(form.map.weight_at.ndim == 1 for _, form in parts):
        kind, what = "norm", f"norm law of {' and '.join(rows)}"
    elif not diagonal:
        kind, what = "matrix", f"matrix law of {', '.join(dict.fromkeys(rows + columns))}"
    else:
        simple = len(rows) == 1 and len(columns) == 1
        kind = "neuron" if simple else "channel"
        what = f"{kind} law of {', '.join(dict.fromkeys(rows + columns))}"
    return kind, f"{what}, {entry}"


def _linear_name(parts: Sequence[Part]) -> tuple[str, str]:
    maps = list(dict.fromkeys(form.map for _, form in parts))
    names = ", ".join(m.name for m in maps)
    if len(parts) == 1:
        return "constant", f"{parts[0][1].text} is constant"
    if len(parts) == 2 and parts[0][0] == -parts[1][0] and parts[1][1].text == f"B({parts[0][1].text})":
        return "difference", f"{parts[0][1].text} and its B move alike"
    if len({c for c, _ in parts}) == 1 and len(maps) == 1:
        return "shift", f"sum law of {names}: {parts[0][1].text}, …"
    if len(maps) == 1:
        return "range", f"{names} moves only along the feedback: {parts[-1][1].text}, …"
    return "shift", f"shift law of {names}: {parts[0][1].text}, …"
