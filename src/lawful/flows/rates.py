"""The rate of convergence certified before a run, and the rate measured after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lawful.errors import NoLawError, SettingError
from lawful.flows.activations import Floats
from lawful.flows.field import check_data
from lawful.flows.network import Network

_RANK_TOLERANCE = 1e-12


@dataclass(frozen=True, slots=True)
class Certificate:
    """‖P e(t)‖ ≤ exp(−rate · t) ‖P e(0)‖, known before training.

    P projects on the range of X (of [X, 1] with biases); (1 − P)e never changes under the flow.  When X has n
    independent rows, or y is in its range and so is e(0), P e = e.

    Attributes:
        c: ⟨b, w_2(0)⟩ − ½‖W_1(0)‖² (− ½‖b_1(0)‖² with biases).
        lambda_min: the smallest non-zero eigenvalue of XXᵀ, equally of XᵀX (with biases see :func:`certify`).
        rate: the certified rate of ‖P e‖; the loss decays twice as fast.  Not positive: nothing is certified.
        error: ‖P e(0)‖.
        floor: ‖(1 − P) e(0)‖, the error that no linear map of X can remove.
    """

    c: float
    lambda_min: float
    rate: float
    error: float
    floor: float

    @property
    def holds(self) -> bool:
        """Whether convergence is certified: c > 0."""
        return self.c > 0

    def bound(self, t: ArrayLike) -> Floats:
        """The certified upper bound of the whole ‖e(t)‖."""
        return np.hypot(self.floor, self.error * np.exp(-self.rate * np.asarray(t, dtype=np.float64)))


def certify(
    network: Network,
    states: Sequence[Mapping[str, Floats]],
    X: ArrayLike,
    Y: ArrayLike,
    *,
    kappa: float = 1.0,
) -> Certificate:
    """Theorem 5.2 of the seed, with its constant: c = ⟨b, w_2(0)⟩ − ½‖W_1(0)‖² > 0 gives rate κ c λ_min(XXᵀ).

    ė = −κ (⟨b, w_2⟩ XXᵀ + X W_1ᵀW_1 Xᵀ) e, and the law ⟨b, w_2⟩ = c + ½‖W_1‖² ≥ c bounds the first term for all
    times.  With biases X is [X, 1], W_1 is [W_1, b_1], and the output bias adds 11ᵀ: the rate is κ times the
    smallest non-zero eigenvalue of c [X, 1][X, 1]ᵀ + 11ᵀ, reported as ``lambda_min`` = rate / (κ c).

    Where it differs from the source: the seed states XXᵀ positive definite (n <= d) only, and a constant that is
    not computed; n > d is covered here through the range of X.

    Args:
        network: a two-layer linear network with one output, at its initial parameters.
        states: its feedback, ``({}, {"B": b})`` with b of shape (1, width).
        X: inputs (n, d).
        Y: targets (n,) or (n, 1).
        kappa: κ of the loss (κ/2)‖e‖².

    Raises:
        NoLawError: more layers, more outputs, or an activation: no such certificate is known.
    """
    if network.depth != 2 or network.widths[-1] != 1 or not network.linear:
        raise NoLawError(
            "the rate is certified for two-layer linear networks with one output; got widths "
            f"{network.widths} with activation {', '.join(network.activations) or 'none'}"
        )
    inputs, targets, kappa = check_data(network, X, Y, kappa)
    W1, w2 = network.weights
    c = float(np.vdot(states[1]["B"], w2) - 0.5 * np.vdot(W1, W1))
    if network.biases is not None:
        c -= 0.5 * float(network.biases[0] @ network.biases[0])
        inputs = np.hstack([inputs, np.ones((len(inputs), 1))])
    left, sigma, _ = np.linalg.svd(inputs, full_matrices=False)
    if sigma[0] == 0:
        raise SettingError("X is zero: there is nothing to learn from")
    basis = left[:, sigma > _RANK_TOLERANCE * sigma[0] * max(inputs.shape)]
    sigma = sigma[: basis.shape[1]]
    lambda_min = float(sigma[-1] ** 2)
    if network.biases is not None and c > 0:
        ones = basis.T @ np.ones(len(inputs))
        lambda_min = float(np.linalg.eigvalsh(np.diag(sigma**2) + np.outer(ones, ones) / c)[0])
    e = (network.forward(check_data(network, X, Y, kappa)[0]) - targets)[:, 0]
    inside = basis.T @ e
    return Certificate(
        c=c,
        lambda_min=lambda_min,
        rate=kappa * c * lambda_min,
        error=float(np.linalg.norm(inside)),
        floor=float(np.linalg.norm(e - basis @ inside)),
    )


@dataclass(frozen=True, slots=True)
class MeasuredRate:
    """How fast ‖e(t)‖ fell.

    Attributes:
        slowest: min over recorded times of −log(‖e(t)‖/‖e(0)‖)/t: the largest rate r for which
            ‖e(t)‖ ≤ exp(−rt)‖e(0)‖ at all of them; this is what a certified rate must not exceed.
        final: the least-squares slope of −log‖e‖ over the last third of the recorded times above the noise.
    """

    slowest: float
    final: float


def measured_rate(t: ArrayLike, loss: ArrayLike, *, floor: float = 0.0, noise: float = 1e-6) -> MeasuredRate:
    """The decay rate of ‖e‖ = √(loss) (any factor of the loss drops out).

    Args:
        t: increasing times (T,), t[0] = 0.
        loss: losses (T,).
        floor: the part of the loss that cannot be removed, subtracted first.
        noise: times at which ‖e‖ < noise · ‖e(0)‖ are left out, as the solver's tolerance rules there.

    Raises:
        SettingError: fewer than two times above the noise.
    """
    times, excess = np.asarray(t, dtype=np.float64), np.asarray(loss, dtype=np.float64) - floor
    if times.shape != excess.shape or times.ndim != 1 or len(times) < 2 or excess[0] <= 0:
        raise SettingError("measured_rate needs two or more times with one loss each, the first loss above the floor")
    ratio = np.sqrt(np.maximum(excess, 0) / excess[0])
    below = np.flatnonzero(ratio < noise)
    end = int(below[0]) if len(below) else len(times)
    if end < 2:
        raise SettingError("measured_rate: the error is below the noise at the second time; record more early times")
    times, decay = times[:end], -np.log(ratio[:end])
    first = min(2 * end // 3, end - 2)
    slope = np.polyfit(times[first:], decay[first:], 1)[0]
    return MeasuredRate(slowest=float((decay[1:] / times[1:]).min()), final=float(slope))
