"""Integrate a learning flow: one function, a table of methods."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from lawful.errors import SettingError
from lawful.flows.adaptive import solve_dop853
from lawful.flows.field import Field
from lawful.flows.fixed import solve_fixed
from lawful.flows.problem import Problem, Trajectory, VectorField
from lawful.flows.steppers import STEPPERS

METHODS: Final[dict[str, Callable[[Problem], Trajectory]]] = {
    "dop853": solve_dop853,
    "gauss-legendre": partial(solve_fixed, stepper=STEPPERS["gauss-legendre"]),
    "rk4": partial(solve_fixed, stepper=STEPPERS["rk4"]),
    "euler": partial(solve_fixed, stepper=STEPPERS["euler"]),
    "relu": partial(solve_fixed, stepper=STEPPERS["rk4"], method="relu"),
}
"""``relu`` is RK4 under looser default tolerances: on a field with kinks the estimate relies on no order, and halving
the step gains a factor 2, not 16."""

_RTOL: Final[dict[str, float]] = {"dop853": 1e-10, "gauss-legendre": 1e-9, "rk4": 1e-9, "euler": 1e-3, "relu": 1e-3}


def default_method(field: VectorField) -> str:
    """``relu`` for a network with a kink, else ``dop853``."""
    return "dop853" if _smooth(field) else "relu"


def _smooth(field: VectorField) -> bool:
    return not isinstance(field, Field) or field.network.smooth


def _no_progress(t: float, loss: float) -> None:
    pass


def solve(
    field: VectorField,
    t_end: float | None = None,
    *,
    t_eval: ArrayLike | None = None,
    num_points: int = 200,
    method: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    step: float | None = None,
    tol: float = 0.0,
    check: bool = True,
    max_evaluations: int = 100_000,
    progress: Callable[[float, float], None] = _no_progress,
) -> Trajectory:
    """Integrate θ̇ = F(θ) from ``field.theta0`` and state the error.

    Args:
        field: F; a :class:`lawful.flows.field.Field`, or any object with ``theta0``, ``__call__`` and ``loss``.
        t_end: the last time; ``num_points`` + 1 equidistant times are recorded.
        t_eval: the times to record instead (0 is put in front when missing).
        num_points: intervals between recorded times.
        method: a key of :data:`METHODS`; default ``dop853``, or ``relu`` for networks with kinks.
        rtol: relative tolerance; default 1e-10 for dop853 (per step), 1e-9 for rk4 and gauss-legendre, 1e-3 for relu,
            1e-3 for euler (whole trajectory, when no step is given).
        atol: absolute tolerance, default rtol / 100.
        step: fixed methods: the coarser of the two steps of the halving check (with ``check=False`` the only one);
            dop853: the largest step.
        tol: stop at the first recorded time with loss < tol.
        check: estimate the error by a second integration.
        max_evaluations: fixed methods without a step: do not start another halving that would evaluate the field
            more often than this; the error reached is in the trajectory.
        progress: called with (t, loss) at every recorded time.

    Returns:
        The trajectory, with ``error_estimate``.

    Raises:
        SettingError: an unknown method, times that do not increase from 0, a step or tolerance that is not positive.
        DivergenceError: the trajectory left the finite numbers.

    Example:
        >>> import numpy as np
        >>> from lawful.flows.network import Network
        >>> from lawful.rules.backprop import Backprop
        >>> flow = Field(Network.make([[[2.0]]]), Backprop(), np.array([[1.0]]), np.array([0.0]))  # ẇ = −w
        >>> abs(solve(flow, 1.0).final[0] - 2 / np.e) < 1e-9
        np.True_
    """
    name = default_method(field) if method is None else method
    if name not in METHODS:
        raise SettingError(f"method must be one of {', '.join(METHODS)}; got {name!r}")
    if (t_end is None) == (t_eval is None):
        raise SettingError("give either t_end or t_eval")
    if t_end is not None and not (0 < t_end < np.inf and num_points >= 1):
        raise SettingError(f"t_end must be > 0 and finite, num_points >= 1; got {t_end!r} and {num_points!r}")
    times = np.linspace(0, t_end, num_points + 1) if t_end is not None else np.array(t_eval, dtype=np.float64)
    if times.ndim == 1 and len(times) and times[0] > 0:
        times = np.concatenate([[0.0], times])
    if (
        times.ndim != 1
        or len(times) < 2
        or times[0] != 0
        or not np.isfinite(times).all()
        or (np.diff(times) <= 0).any()
    ):
        raise SettingError("t_eval must be a vector of increasing finite times >= 0, at least one of them > 0")
    if step is not None and not 0 < step < np.inf:
        raise SettingError(f"step must be a finite number > 0; got {step!r}")
    relative = _RTOL[name] if rtol is None else rtol
    absolute = relative / 100 if atol is None else atol
    if not (0 < relative < 1 and absolute >= 0 and tol >= 0):
        raise SettingError(f"need 0 < rtol < 1, atol >= 0, tol >= 0; got {relative!r}, {absolute!r}, {tol!r}")
    problem = Problem(
        field=field,
        t_eval=times,
        rtol=relative,
        atol=absolute,
        step=step,
        tol=tol,
        check=check,
        progress=progress,
        smooth=_smooth(field) and name != "relu",
        max_evaluations=max_evaluations,
    )
    return METHODS[name](problem)
