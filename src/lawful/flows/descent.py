"""Full-batch gradient descent under a rule: the discrete twin of the flow, at t = lr · step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lawful.errors import SettingError
from lawful.flows.activations import Floats
from lawful.flows.problem import Trajectory, VectorField, require_finite


def _no_observer(step: int, theta: Floats, delta: Floats) -> None:
    pass


def descend(
    field: VectorField,
    lr: float,
    num_steps: int,
    *,
    record_every: int = 1,
    tol: float = 0.0,
    observe: Callable[[int, Floats, Floats], None] = _no_observer,
) -> Trajectory:
    """θ(s + 1) = θ(s) + lr · F(θ(s)): plain SGD on the full batch.

    Args:
        field: F, from ``field.theta0``.
        lr: learning rate.
        num_steps: number of steps.
        record_every: record every so many steps (step 0 and the last one are always recorded).
        tol: stop at the first recorded step with loss < tol.
        observe: called at *every* step with (step, θ before it, total step Δ): sum ½‖Δ‖² for the ledger here.

    Returns:
        A trajectory with t = lr · step; ``error_estimate`` is 0 because the recursion itself is the object.

    Raises:
        SettingError: lr <= 0, num_steps < 1 or record_every < 1.
        DivergenceError: non-finite parameters.
    """
    if not (0 < lr < np.inf and num_steps >= 1 and record_every >= 1):
        raise SettingError(
            f"need lr > 0, num_steps >= 1, record_every >= 1; got {lr!r}, {num_steps!r}, {record_every!r}"
        )
    theta = field.theta0.copy()
    loss = field.loss(theta)
    steps, thetas, losses = [0], [theta], [loss]
    for s in range(num_steps):
        if s == steps[-1] and loss < tol:
            break
        with np.errstate(over="ignore", invalid="ignore"):
            delta = lr * field(theta)
            observe(s, theta, delta)
            theta = theta + delta
        if (s + 1) % record_every == 0 or s + 1 == num_steps:
            with np.errstate(over="ignore", invalid="ignore"):
                loss = field.loss(theta)
            require_finite(theta, lr * (s + 1), loss, f"descent with lr {lr:.3g}", "choose a smaller lr")
            steps.append(s + 1)
            thetas.append(theta)
            losses.append(loss)
    return Trajectory(
        t=lr * np.array(steps, dtype=np.float64),
        theta=np.array(thetas),
        loss=np.array(losses),
        error_estimate=0.0,
        method="descent",
        step=lr,
        num_evaluations=steps[-1],
        stopped_early=steps[-1] < num_steps,
    )
