"""What the user gives, as exact rationals: feedback weights and inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import flint
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


def given_feedback(arch: Architecture, family: Family, B: Any) -> tuple[np.ndarray, ...]:
    """The given feedback as exact rationals."""
    if isinstance(B, str):
        raise SettingError(f"find_laws: B must be 'generic' or a list of arrays; got {B!r}")
    if family.source in ("weight", "moving"):
        raise SettingError(f"find_laws: rule {family.name} has no fixed B to give; leave B='generic'")
    if family.name == "usf":
        raise SettingError("find_laws: usf has one number a layer for B; pass rule='frsf' with B the magnitudes M")
    drawn = draw_feedback(arch, family, np.random.default_rng(0))
    shapes = [block.shape for block in drawn[1:]]
    if not isinstance(B, Sequence):
        raise SettingError(f"find_laws: B must be 'generic' or a list of {len(shapes)} arrays; got {B!r}")
    arrays = [number_array(b, "find_laws: B") for b in B]
    if [a.shape for a in arrays] != shapes:
        raise SettingError(
            f"find_laws: B must be {len(shapes)} arrays of shapes {shapes}; got {[a.shape for a in arrays]}"
        )
    exact = [exact_array(a, "B") for a in arrays]
    if family.orthant and not all((block > 0).all() for block in exact):
        what = "magnitudes M, as B = M ⊙ sign(W)" if family.source == "sign" else "positive, as its rule keeps it"
        raise SettingError(f"find_laws: B of {family.name} must be {what}: expected numbers > 0 only")
    return (drawn[0], *exact)


def generic_feedback(
    arch: Architecture, family: Family, rng: np.random.Generator, largest: int
) -> tuple[np.ndarray, ...]:
    """Feedback whose products to the output have full rank, as generic ones do.

    A count with rank-deficient feedback would say nothing about other feedback. Sign rules have no generic B.
    """
    while True:
        drawn = draw_feedback(arch, family, rng, largest)
        if family.source == "sign" or _has_full_ranks(arch, family, drawn):
            return drawn


def _has_full_ranks(arch: Architecture, family: Family, B: tuple[np.ndarray, ...]) -> bool:
    out = arch.widths[-1]
    chain, narrowest = flint.fmpz_mat([[int(i == j) for j in range(out)] for i in range(out)]), out
    for i in reversed(range(1, arch.depth)):
        rows, columns = B[i].shape
        transposed = flint.fmpz_mat(rows, columns, [int(x) for x in B[i].ravel()]).transpose()
        chain = transposed if family.direct else transposed * chain
        narrowest = min(arch.widths[i], out if family.direct else narrowest)
        if chain.rank() < narrowest:
            return False
    return True


def exact_inputs(arch: Architecture, inputs: Any) -> np.ndarray | None:
    """The given inputs (n, n_0) as rationals, or None."""
    if inputs is None:
        return None
    array = number_array(inputs, "find_laws: inputs")
    if array.ndim != 2 or array.shape[1] != arch.widths[0] or not len(array):
        raise SettingError(f"find_laws: inputs must have shape (n, {arch.widths[0]}) with n >= 1; got {array.shape}")
    exact = exact_array(array, "inputs")
    return np.array(list(dict.fromkeys(map(tuple, exact))), dtype=object)  # each once


def number_array(values: Any, what: str) -> np.ndarray:
    """As an array of numbers.

    Raises:
        SettingError: rows of unequal length; a tensor that is sparse or without numbers.
    """
    if isinstance(values, torch.Tensor):
        if values.layout is not torch.strided or values.device.type == "meta":
            raise SettingError(f"{what} must be a dense tensor with numbers; got {values!r:.60}")
        plain = values.detach().cpu()
        values = plain.double() if plain.is_floating_point() else plain  # numpy has no bfloat16
    try:
        return np.asarray(values)
    except ValueError as error:
        raise SettingError(f"{what} must be an array of numbers; got {values!r:.60}") from error


def exact_array(array: np.ndarray, what: str) -> np.ndarray:
    """Floats as the rationals they are.

    Raises:
        SettingError: an entry that is not finite.
    """
    try:
        finite = not np.iscomplexobj(array) and np.isfinite(array.astype(np.float64)).all()
    except (TypeError, ValueError, OverflowError) as error:
        raise SettingError(
            f"find_laws: {what} must hold real numbers; got {array.dtype} {array.tolist()!r:.60}"
        ) from error
    if not finite:
        bad = next(x for x in array.ravel().tolist() if isinstance(x, complex) or not math.isfinite(x))
        raise SettingError(
            f"find_laws: {what} must be finite real numbers; got {bad}, in an array of shape {array.shape}"
        )
    return np.array([Fraction(x) for x in array.ravel().tolist()], dtype=object).reshape(array.shape)
