"""Adaptive integration of smooth flows: DOP853."""

from __future__ import annotations

import numpy as np
from scipy.integrate import DOP853

from lawful.errors import DivergenceError
from lawful.flows.activations import Floats
from lawful.flows.problem import Counter, Problem, Trajectory, require_finite

_COARSER = 100.0
"""The error check integrates once more with tolerances this much looser."""

_ADVICE = "the flow itself blows up, or the initial weights are too large: reduce init_scale or the time asked for"


def _integrate(problem: Problem, loosen: float, counter: Counter, quiet: bool) -> tuple[Floats, Floats, bool]:
    theta0, times = problem.field.theta0, problem.t_eval
    thetas, losses = [theta0.copy()], [problem.field.loss(theta0)]
    if losses[0] < problem.tol or len(times) == 1:
        return np.array(thetas), np.array(losses), len(times) > 1
    solver = DOP853(
        lambda t, y: counter(y),
        0.0,
        theta0,
        float(times[-1]),
        rtol=max(problem.rtol * loosen, 3e-14),
        atol=problem.atol * loosen,
        max_step=np.inf if problem.step is None else problem.step,
    )
    at = 1
    while solver.status == "running":
        with np.errstate(over="ignore", invalid="ignore"):
            message = solver.step()
        if solver.status == "failed":
            raise DivergenceError(f"dop853 failed at t = {solver.t:.6g} ({message}); {_ADVICE}")
        require_finite(solver.y, solver.t, 0.0, "dop853", _ADVICE)
        if at < len(times) and times[at] <= solver.t:
            dense = solver.dense_output()
            while at < len(times) and times[at] <= solver.t:
                theta = solver.y if times[at] == solver.t else dense(times[at])
                loss = problem.field.loss(theta)
                thetas.append(theta.copy())
                losses.append(loss)
                if not quiet:
                    problem.progress(float(times[at]), loss)
                at += 1
                if loss < problem.tol:
                    return np.array(thetas), np.array(losses), at < len(times)
    return np.array(thetas), np.array(losses), False


def solve_dop853(problem: Problem) -> Trajectory:
    """SciPy's Dormand–Prince method of order 8, recorded through its dense output of order 7.

    The error estimate is the largest difference from a second integration with tolerances a hundred times looser:
    in effect the error of the looser one, so an overestimate.

    Raises:
        DivergenceError: a non-finite value, or a step size below rounding (a kink or a blow-up).
    """
    counter = Counter(problem.field, "dop853")
    theta, loss, early = _integrate(problem, 1.0, counter, quiet=False)
    estimate = np.nan
    if problem.check:
        loose = _integrate(problem, _COARSER, counter, quiet=True)[0]
        common = min(len(loose), len(theta))
        estimate = float(np.abs(loose[:common] - theta[:common]).max())
    return Trajectory(
        t=problem.t_eval[: len(theta)],
        theta=theta,
        loss=loss,
        error_estimate=estimate,
        method="dop853",
        step=np.nan,
        num_evaluations=counter.calls,
        stopped_early=early,
    )
