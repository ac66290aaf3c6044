"""One step of each fixed-step method: θ(t) to θ(t + h)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from lawful.errors import DivergenceError
from lawful.flows.activations import Floats

Function = Callable[[Floats], Floats]
Step = Callable[[Function, Floats, float], Floats]
"""(F, θ, h) to the *increment* θ(t + h) − θ(t)."""


def euler_step(F: Function, theta: Floats, h: float) -> Floats:
    """Increment h F(θ): gradient descent with learning rate h."""
    return h * F(theta)


def rk4_step(F: Function, theta: Floats, h: float) -> Floats:
    """The classical Runge–Kutta step of order 4."""
    k1 = F(theta)
    k2 = F(theta + h / 2 * k1)
    k3 = F(theta + h / 2 * k2)
    k4 = F(theta + h * k3)
    return h / 6 * (k1 + 2 * (k2 + k3) + k4)


_R3 = 3**0.5
_A11, _A12, _A21, _A22 = 0.25, 0.25 - _R3 / 6, 0.25 + _R3 / 6, 0.25
_MAX_SWEEPS = 100


def gauss_legendre_step(F: Function, theta: Floats, h: float) -> Floats:
    """The two-stage Gauss–Legendre step, order 4: keeps every quadratic invariant of F exactly, but for rounding.

    Stages k_i = F(θ + h Σ_j a_ij k_j), solved by fixed-point sweeps down to rounding (a looser solution would
    break the invariants by its residual).

    Raises:
        DivergenceError: the sweeps do not contract (h times the Lipschitz constant of F is too large).

    References:
        Hairer, Lubich & Wanner, *Geometric Numerical Integration*, 2006, Theorem IV.2.1.
    """
    k1 = k2 = F(theta)
    rounding = np.finfo(np.float64).eps * (np.abs(theta).max() + h * np.abs(k1).max())
    last = np.inf
    for _ in range(_MAX_SWEEPS):
        new1 = F(theta + h * (_A11 * k1 + _A12 * k2))
        new2 = F(theta + h * (_A21 * new1 + _A22 * k2))
        change = h * max(np.abs(new1 - k1).max(), np.abs(new2 - k2).max())
        k1, k2 = new1, new2
        # Below the rounding of theta itself, sweep on only while it still helps.
        if change == 0 or (change <= rounding and change > last / 2):
            return h / 2 * (k1 + k2)
        if not np.isfinite(change):
            break
        last = change
    raise DivergenceError(
        f"gauss-legendre: the stage equations did not converge with step {h:.3g}; choose a smaller step"
    )


@dataclass(frozen=True, slots=True)
class Stepper:
    """A fixed-step method.

    Attributes:
        name: its key.
        step: the increment over one step.
        order: the order of convergence on smooth fields.
        reach: h·‖F'(θ0)‖ that is safe as a first step size.
    """

    name: str
    step: Step
    order: int
    reach: float


STEPPERS: Final[dict[str, Stepper]] = {
    s.name: s
    for s in (
        Stepper("euler", euler_step, 1, 0.05),
        Stepper("rk4", rk4_step, 4, 0.25),
        Stepper("gauss-legendre", gauss_legendre_step, 4, 0.25),
    )
}
