"""Gaussian inputs with a noiseless linear target: the regression problem of the linear theory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lawful.errors import SettingError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Regression:
    """Inputs, targets and the map between them.

    Attributes:
        X: inputs (n, d).
        Y: targets (n, m), Y = X w*.
        teacher: w*, (d, m).
    """

    X: Floats
    Y: Floats
    teacher: Floats

    @property
    def minimum_norm(self) -> Floats:
        """X⁺Y, (d, m): of all w with Xw = Y the one of least norm."""
        return np.linalg.pinv(self.X) @ self.Y

    @property
    def null_projector(self) -> Floats:
        """P_⊥ = I − X⁺X, (d, d): onto the directions that no sample has."""
        return np.eye(self.X.shape[1]) - np.linalg.pinv(self.X) @ self.X


def gaussian_teacher(n: int, d: int, m: int, *, scale: float | None, rng: np.random.Generator) -> Regression:
    """X ~ N(0, 1) and Y = X w* with w* of random direction.

    Args:
        n: samples.
        d: inputs.
        m: outputs.
        scale: the norm of each column of w*; None leaves w* ~ N(0, 1), of norm about √d.
        rng: the random stream.

    Raises:
        SettingError: a size below 1, or a negative or non-finite scale.

    >>> problem = gaussian_teacher(3, 5, 1, scale=2.0, rng=np.random.default_rng(0))
    >>> problem.X.shape, problem.Y.shape, round(float(np.linalg.norm(problem.teacher)), 12)
    ((3, 5), (3, 1), 2.0)
    """
    if min(n, d, m) < 1:
        raise SettingError(f"n, d and m must be integers >= 1; got n={n}, d={d}, m={m}")
    if scale is not None and not 0 <= scale < np.inf:
        raise SettingError(f"scale must be None or a finite number >= 0; got {scale!r}")
    X = rng.standard_normal((n, d))
    teacher = rng.standard_normal((d, m))
    if scale is not None:
        teacher *= scale / np.linalg.norm(teacher, axis=0)
    return Regression(X, X @ teacher, teacher)
