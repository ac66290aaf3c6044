"""Fixed-step integration with a step-halving check of the error."""

from __future__ import annotations

import math

import numpy as np

from lawful.errors import DivergenceError
from lawful.flows.activations import Floats
from lawful.flows.problem import Counter, Problem, Trajectory, require_finite
from lawful.flows.steppers import Stepper

_MAX_HALVINGS = 12


def integrate(problem: Problem, stepper: Stepper, step: float, counter: Counter) -> tuple[Floats, Floats]:
    """θ (T', D) and loss (T',) at the recorded times, each interval cut into equal steps of at most ``step``.

    Increments are added with compensated summation, so that rounding does not grow with the number of steps.

    Raises:
        DivergenceError: a non-finite value.
    """
    theta = problem.field.theta0.copy()
    carry = np.zeros_like(theta)
    loss = problem.field.loss(theta)
    thetas, losses = [theta.copy()], [loss]
    advice = f"choose a step smaller than {step:.3g}"
    for t, later in zip(problem.t_eval[:-1], problem.t_eval[1:], strict=True):
        if loss < problem.tol:
            break
        num_steps = max(1, math.ceil((later - t) / step * (1 - 1e-12)))
        h = (later - t) / num_steps
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(num_steps):
                increment = stepper.step(counter, theta, h) - carry
                new = theta + increment
                carry = (new - theta) - increment
                theta = new
            loss = problem.field.loss(theta)
        require_finite(theta, later, loss, f"{stepper.name} with step {step:.3g}", advice)
        thetas.append(theta.copy())
        losses.append(loss)
        problem.progress(float(later), loss)
    return np.array(thetas), np.array(losses)


def first_step(problem: Problem, stepper: Stepper, counter: Counter) -> float:
    """The step size asked for, else reach / ‖F'(θ0)‖ with the norm from a few finite-difference power iterations."""
    horizon = float(problem.t_eval[-1])
    if problem.step is not None:
        return problem.step
    theta = problem.field.theta0
    f0 = counter(theta)
    direction, norm = f0, 0.0
    for _ in range(6):
        size = float(np.linalg.norm(direction))
        if size == 0:
            break
        eps = 1e-6 * (1 + float(np.linalg.norm(theta))) / size
        direction = (counter(theta + eps * direction) - f0) / eps
        norm = max(norm, float(np.linalg.norm(direction)) / size)
    return min(horizon, stepper.reach / norm) if norm > 0 else horizon


def solve_fixed(problem: Problem, stepper: Stepper, method: str | None = None) -> Trajectory:
    """Integrate with h and h/2; return the finer one and the estimate of its error.

    The estimate is the largest difference between the two, divided by 2^order − 1 (Richardson) on smooth fields and
    not divided on fields with kinks, where no order above 1 can be relied on.  With a step given, that is all.
    Without one, the step is halved until the estimate is below rtol·max|θ| + atol, at most 12 times and within
    the evaluations allowed; whatever the estimate then is, it is in the trajectory.

    Raises:
        DivergenceError: a non-finite value with the step given, or with every step tried.
    """
    counter = Counter(problem.field, stepper.name)
    step = first_step(problem, stepper, counter)
    factor = 2**stepper.order - 1 if problem.smooth else 1
    given = problem.step is not None
    coarse: tuple[Floats, Floats] | None = None
    estimate, halvings = np.nan, 0
    while True:
        try:
            fine = integrate(problem, stepper, step, counter)
        except DivergenceError:
            if given or halvings == _MAX_HALVINGS:
                raise
            coarse, step, halvings = None, step / 2, halvings + 1
            continue
        if coarse is not None:
            common = min(len(coarse[0]), len(fine[0]))
            estimate = float(np.abs(coarse[0][:common] - fine[0][:common]).max()) / factor
            if given or estimate <= problem.rtol * np.abs(fine[0]).max() + problem.atol:
                break
        if not problem.check or halvings == _MAX_HALVINGS or 3 * counter.calls > problem.max_evaluations:
            break
        coarse, step, halvings = fine, step / 2, halvings + 1
    theta, loss = fine
    return Trajectory(
        t=problem.t_eval[: len(theta)],
        theta=theta,
        loss=loss,
        error_estimate=estimate,
        method=method or stepper.name,
        step=step,
        num_evaluations=counter.calls,
        stopped_early=len(theta) < len(problem.t_eval),
    )
