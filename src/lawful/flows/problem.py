"""What a solver is given and what it returns: an initial value problem, and its trajectory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lawful.errors import DivergenceError
from lawful.flows.activations import Floats


class VectorField(Protocol):
    """θ̇ = F(θ) with a loss; :class:`lawful.flows.field.Field` and the reduced flow are such."""

    theta0: Floats

    def __call__(self, theta: Floats) -> Floats:
        """θ̇ (D,), a new array."""
        ...

    def loss(self, theta: Floats) -> float:
        """The loss at θ."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An initial value problem as a solver sees it; :func:`lawful.flows.solve.solve` makes and checks one.

    Attributes:
        field: F, with θ(0) = ``field.theta0``.
        t_eval: the increasing times to record, (T,), first one 0.
        rtol, atol: tolerances (adaptive solvers: of a local step; step halving: of the whole trajectory).
        step: largest time step, or None for the solver's own choice.
        tol: stop when the loss is below it.
        check: whether to estimate the error by a second integration.
        progress: called with (t, loss) at every recorded time.
        smooth: whether F has no kinks, so that a solver's order can be relied on.
        max_evaluations: step halving ends before a run would exceed it.
    """

    field: VectorField
    t_eval: Floats
    rtol: float
    atol: float
    step: float | None
    tol: float
    check: bool
    progress: Callable[[float, float], None]
    smooth: bool
    max_evaluations: int


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A solution θ(t) at the recorded times.

    Attributes:
        t: times (T,); shorter than asked when the loss fell below ``tol`` (``stopped_early``).
        theta: parameters (T, D).
        loss: the loss (T,).
        error_estimate: estimated max over t of ‖θ(t) − exact‖_∞, by comparison with a coarser integration; nan if
            not asked for.
        method: the solver's name.
        step: the time step of a fixed-step solver, nan for an adaptive one.
        num_evaluations: evaluations of the field, error check included.
        stopped_early: whether the loss fell below ``tol`` before the last time asked for.
    """

    t: Floats
    theta: Floats
    loss: Floats
    error_estimate: float
    method: str
    step: float
    num_evaluations: int
    stopped_early: bool

    @property
    def final(self) -> Floats:
        """θ at the last recorded time, (D,)."""
        return self.theta[-1]


class Counter:
    """A vector field that counts its evaluations and refuses non-finite values."""

    def __init__(self, field: VectorField, method: str) -> None:
        self.field, self.method, self.calls = field, method, 0

    def __call__(self, theta: Floats) -> Floats:
        """θ̇ at θ."""
        self.calls += 1
        return self.field(theta)


def require_finite(theta: Floats, t: float, loss: float, what: str, advice: str) -> None:
    """Raise when a trajectory has left the finite numbers.

    Raises:
        DivergenceError: a non-finite parameter or loss.
    """
    if not (np.isfinite(loss) and np.isfinite(theta).all()):
        raise DivergenceError(
            f"{what} diverged at t = {t:.6g}: the parameters are no finite numbers any more; {advice}"
        )
