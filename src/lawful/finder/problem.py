"""What the user gives, as exact rationals: feedback weights and inputs."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from lawful.errors import SettingError
from lawful.finder.architectures import Architecture
from lawful.finder.families import Family
from lawful.finder.fields import System, draw_feedback, split


def signed_feedback(system: System, point: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """B at the point as rationals: M ⊙ sign(W) for sign rules."""
    if system.family.source != "sign":
        return system.exact
    weights, _, _ = split(system, point)
    pairs = zip(system.exact[1:], weights[1:], strict=True)
    return (system.exact[0], *(b * np.sign(w).astype(int).astype(object) for b, w in pairs))


def exact_feedback(arch: Architecture, family: Family, B: str | Sequence[Any], seed: int) -> tuple[np.ndarray, ...]:
    """Generic feedback, or the given one as exact rationals."""
    drawn = draw_feedback(arch, family, np.random.default_rng([seed, 1]))
    if isinstance(B, str):
        if B != "generic":
            raise SettingError(f"find_laws: B must be 'generic' or a list of arrays; got {B!r}")
        return drawn
    if family.source in ("weight", "moving"):
        raise SettingError(f"find_laws: rule {family.name} has no fixed B to give; leave B='generic'")
    shapes = [block.shape for block in drawn[1:]]
    arrays = [np.asarray(torch.as_tensor(b).detach().cpu() if isinstance(b, torch.Tensor) else b) for b in B]
    if [a.shape for a in arrays] != shapes:
        raise SettingError(
            f"find_laws: B must be {len(shapes)} arrays of shapes {shapes}; got {[a.shape for a in arrays]}"
        )
    return (drawn[0], *(exact_array(a, "B") for a in arrays))


def exact_inputs(arch: Architecture, inputs: Any) -> np.ndarray | None:
    """The given inputs (n, n_0) as rationals, or None."""
    if inputs is None:
        return None
    array = np.asarray(inputs.detach().cpu() if isinstance(inputs, torch.Tensor) else inputs)
    if array.ndim != 2 or array.shape[1] != arch.widths[0] or not len(array):
        raise SettingError(f"find_laws: inputs must have shape (n, {arch.widths[0]}) with n >= 1; got {array.shape}")
    return exact_array(array, "inputs")


def exact_array(array: np.ndarray, what: str) -> np.ndarray:
    """Floats as the rationals they are.

    Raises:
        SettingError: an entry that is not finite.
    """
    if not np.isfinite(array.astype(np.float64)).all():
        raise SettingError(f"find_laws: {what} must be finite")
    return np.array([Fraction(x) for x in array.ravel().tolist()], dtype=object).reshape(array.shape)
