"""The value of a law at weights in floating point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lawful.errors import SettingError
from lawful.finder.polynomials import Polynomial
from lawful.finder.problem import number_array
from lawful.finder.symbols import Symbols

Parts = tuple[Sequence[Any], Sequence[Any] | None, Sequence[Any] | None]
"""(W, b, B), or their velocities."""


def evaluate(
    symbols: Symbols,
    h: Polynomial,
    parts: Parts,
    t: float | None = None,
    velocity: Sequence[Any] | None = None,
    *,
    numbers: bool = False,
) -> float:
    """A law's polynomial in floating point.

    Raises:
        SettingError: arrays, a time or a velocity that are missing, superfluous or of the wrong shape.
    """
    system = symbols.system
    W, b, B = parts
    blocks = _state("", symbols, W, b, B)
    if system.geometry == "momentum":
        blocks += _state("velocity: ", symbols, *_velocity(velocity))
    elif velocity is not None:
        raise SettingError(f"law.value: the laws of geometry {system.geometry!r} have no velocity; leave it out")
    if system.geometry != "plain":
        blocks.append(np.array([math.exp(_time(system.geometry, t))]))
    elif t is not None:
        raise SettingError("law.value: the laws of geometry 'plain' do not depend on time; leave t out")
    blocks += _constants(symbols, blocks, B, numbers=numbers)
    values = np.concatenate([block.ravel() for block in blocks])
    return float(sum(float(c) * float(np.prod([values[n] for n in m])) for m, c in h.items()))


def _time(geometry: str, t: float | None) -> float:
    unit = {"decay": "1/λ", "momentum": "1/γ"}[geometry]
    if isinstance(t, bool) or not isinstance(t, int | float | np.number) or not math.isfinite(t):
        raise SettingError(f"law.value: laws of geometry {geometry!r} depend on time; expected t in {unit}, got {t!r}")
    return float(t)


def _velocity(velocity: Sequence[Any] | None) -> Parts:
    if velocity is None or not 1 <= len(velocity) <= 3:
        raise SettingError(
            "law.value: under momentum expected velocity=(V, c, C), the derivatives of W, b and B by t in units of 1/γ"
        )
    rest = [*velocity[1:], None, None]
    return velocity[0], rest[0], rest[1]


def _state(what: str, symbols: Symbols, W: Sequence[Any], b: Any, B: Any) -> list[np.ndarray]:
    """W_1, (b_1), W_2, …, then a moving B_2 … B_L, checked."""
    system = symbols.system
    names, given = [], []
    weights, biases = list(W), list(b or [])
    for i, has_bias in enumerate(system.arch.biases):
        names += [f"W_{i + 1}"] + [f"b_{i + 1}"] * has_bias
        given += weights[i : i + 1] or [None]
        given += (biases[i : i + 1] or [None]) * has_bias
    if system.moving:
        names += [f"the moving B_{i + 1}" for i in range(1, system.arch.depth)]
        given += [*(B or []), *[None] * system.arch.depth][: system.arch.depth - 1]
    extra = len(weights) > system.arch.depth or any(v is not None for v in biases[system.arch.depth :])
    extra |= any(v is not None and not has for v, has in zip(biases, system.arch.biases, strict=False))
    if extra:
        raise SettingError(f"law.value: {what}expected only {', '.join(names)}; got more weights or biases")
    blocks = []
    for name, value, shape in zip(names, given, system.parameter_shapes(), strict=True):
        if value is None:
            raise SettingError(f"law.value: {what}expected {name} of shape {shape}; it is missing")
        blocks.append(_checked(what + name, value, shape))
    return blocks


def _refuse_others(own: list[np.ndarray], given: list[np.ndarray]) -> None:
    """Where the coefficients contain numbers of B, they must be these."""
    if not all(map(np.array_equal, own, given)):
        raise SettingError(
            "law.value: this law contains the numbers of the B it was found for; got another. Find the laws of yours: "
            "find_laws(…, B=…), or leave B out"
        )


def _constants(
    symbols: Symbols, blocks: list[np.ndarray], B: Sequence[Any] | None, *, numbers: bool
) -> list[np.ndarray]:
    """The constant B_2 … B_L (direct rules D_1 …): given, or those of the search; under sign rules M ⊙ sign(W)."""
    system = symbols.system
    if system.family.source not in ("fixed", "sign"):
        return []
    shapes = [block.shape for block in system.exact[1:]]
    if B is not None and len(B) != len(shapes):
        raise SettingError(f"law.value: expected {len(shapes)} arrays B of shapes {shapes}; got {len(B)}")
    exact = [block.astype(np.float64) for block in system.exact[1:]]
    given = exact if B is None else [_checked("B", v, shape) for v, shape in zip(B, shapes, strict=True)]
    if system.family.name == "usf" and B is None:
        given = [np.full(s, s[1] ** -0.5 if system.scale is None else system.scale) for s in shapes]
    if numbers:
        sizes = np.abs if system.family.source == "sign" else np.asarray
        _refuse_others([sizes(b) for b in exact], [sizes(b) for b in given])
    if system.family.source == "fixed":
        return given
    weights = [block for block in blocks[: len(system.parameter_shapes())] if block.ndim == 2]
    return [np.abs(m) * np.sign(w) for m, w in zip(given, weights[1:], strict=True)]


def _checked(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = number_array(value, f"law.value: {name}")
    if array.shape != shape:
        raise SettingError(f"law.value: expected {name} of shape {shape}; got {array.shape}")
    if np.iscomplexobj(array):
        raise SettingError(f"law.value: expected real numbers for {name}; got {array.dtype}")
    try:
        array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise SettingError(f"law.value: expected numbers for {name}; got {value!r:.60}") from error
    return array
