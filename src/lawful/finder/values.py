"""The value of a law at weights in floating point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lawful.errors import SettingError
from lawful.finder.polynomials import Polynomial
from lawful.finder.symbols import Symbols


def evaluate(symbols: Symbols, h: Polynomial, W: Sequence[Any], b: Any, B: Any) -> float:
    """A law's polynomial in floating point."""
    system = symbols.system
    if system.geometry != "plain":
        raise SettingError("law.value: time-dependent laws are given as polynomials; evaluate law.polynomial")
    weights, biases = [_array(w) for w in W], [None if v is None else _array(v) for v in (b or [])]
    theta: list[np.ndarray] = []
    for i, has_bias in enumerate(system.arch.biases):
        theta.append(weights[i])
        if has_bias:
            if i >= len(biases) or biases[i] is None:
                raise SettingError(f"law.value: expected the bias b_{i + 1}")
            theta.append(biases[i])  # pyright: ignore[reportArgumentType]
    given = [_array(block) for block in B] if B is not None else None
    constants: list[np.ndarray] = []
    if system.family.source == "moving":
        if given is None:
            raise SettingError("law.value: expected the moving B_2, …, B_L")
        theta += given
    elif system.family.source == "sign":
        pairs = zip(weights[1:], given or [np.ones(1)] * (len(weights) - 1), strict=True)
        constants = [m * np.sign(w) for w, m in pairs]
    elif system.family.source == "fixed":
        constants = given or [block.astype(np.float64) for block in system.exact[1:]]
    shapes = [*system.shapes(), *(block.shape for block in system.exact if constants and block.size)]
    blocks = [*theta, *constants]
    if [block.shape for block in blocks] != shapes:
        raise SettingError(f"law.value: expected arrays of shapes {shapes}; got {[block.shape for block in blocks]}")
    values = np.concatenate([block.ravel() for block in blocks])
    return float(sum(float(c) * float(np.prod([values[n] for n in m])) for m, c in h.items()))


def _array(value: Any) -> np.ndarray:
    tensor = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
    return np.asarray(tensor, dtype=np.float64)
