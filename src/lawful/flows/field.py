"""The velocity field of a learning rule: theta to theta_dot, on the full batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from lawful.errors import SettingError
from lawful.flows.activations import Floats
from lawful.flows.feedback import check_states, numpy_states
from lawful.flows.network import Network
from lawful.rules.base import Rule


def check_data(network: Network, X: ArrayLike, Y: ArrayLike, kappa: float) -> tuple[Floats, Floats, float]:
    """X (n, d) and Y (n, m) as float64 arrays that fit the network, and κ.

    Raises:
        SettingError: shapes that do not fit, κ <= 0, non-finite data.
    """
    inputs = np.ascontiguousarray(X, dtype=np.float64)
    targets = np.array(Y, dtype=np.float64)
    targets = targets[:, None] if targets.ndim == 1 else targets
    d, m = network.widths[0], network.widths[-1]
    if inputs.ndim != 2 or inputs.shape[1] != d or inputs.shape[0] < 1:
        raise SettingError(f"X must have shape (n, {d}) with n >= 1; got {inputs.shape}")
    if targets.shape != (len(inputs), m):
        raise SettingError(f"Y must have shape ({len(inputs)}, {m}); got {targets.shape}")
    if not (np.isfinite(inputs).all() and np.isfinite(targets).all()):
        raise SettingError("X and Y must be finite numbers")
    if not 0 < kappa < np.inf:
        raise SettingError(f"kappa must be a finite number > 0; got {kappa!r}")
    return inputs, targets, float(kappa)


class Field:
    """θ̇ = F(θ): Ẇ_i = −δ_iᵀ a_{i-1}, ḃ_i = −Σ_n δ_i, δ_{i-1} = (δ_i B_i) ⊙ σ'(h_{i-1}), δ_L = κ e.

    The loss is (κ/2)‖e‖² with e = output − Y, summed over samples and outputs; torch's MSELoss is κ = 2/(n·m).
    Flow time is t = lr · step.  B_i = ``rule.feedback(W_i, states[i])`` is evaluated at the current weights.

    Args:
        network: architecture, and the initial parameters (``theta0``).
        rule: any feedback rule.
        X: inputs (n, d).
        Y: targets (n, m); (n,) is read as (n, 1).
        kappa: κ > 0.
        states: the rule's state per layer; default :func:`lawful.flows.feedback.numpy_states`.

    Attributes:
        theta0: the initial parameters (D,).
        num_evaluations: how often the field was called.

    Raises:
        SettingError: shapes that do not fit, κ <= 0, non-finite data, a rule whose state moves by itself.

    Example:
        >>> import numpy as np
        >>> from lawful.rules.backprop import Backprop
        >>> net = Network.make([[[2.0]]])  # one weight: loss ½(wx − y)², θ̇ = −(wx − y)x
        >>> Field(net, Backprop(), np.array([[3.0]]), np.array([1.0]))(net.theta())
        array([-15.])
    """

    def __init__(
        self,
        network: Network,
        rule: Rule,
        X: ArrayLike,
        Y: ArrayLike,
        *,
        kappa: float = 1.0,
        states: Sequence[Mapping[str, Floats]] | None = None,
    ) -> None:
        inputs, targets, kappa = check_data(network, X, Y, kappa)
        if rule.learns:
            raise SettingError(f"a flow keeps the rule's state fixed, but {rule!r} moves it after every step: train it")
        self.network, self.rule, self.X, self.Y, self.kappa = network, rule, inputs, targets, kappa
        self.states = numpy_states(rule, network) if states is None else tuple(states)
        check_states(network, self.states)
        self.theta0 = network.theta()
        self.num_evaluations = 0
        self._sigmas = network.sigmas
        plain = type(rule).transport is Rule.transport
        self._short = network.linear and plain and targets.shape[1] < len(inputs)
        self._h = [np.empty((len(inputs), width)) for width in network.widths[1:]]
        self._a: list[Floats] = [inputs, *(np.empty(0) for _ in network.weights[1:])]

    def _run(self, weights: list[Floats], biases: list[Floats] | None) -> Floats:
        """Forward pass into the buffers; returns the output, a buffer."""
        last = len(weights) - 1
        for i, w in enumerate(weights):
            h = np.matmul(self._a[i], w.T, out=self._h[i])
            if biases is not None:
                h += biases[i]
            if i < last:
                self._a[i + 1] = self._sigmas[i].value(h) if self.network.activations[i] != "linear" else h
        return self._h[last]

    def __call__(self, theta: Floats) -> Floats:
        """θ̇ (D,), a new array, at the parameters θ (D,)."""
        self.num_evaluations += 1
        weights, biases = self.network.unpack(theta)
        theta_dot = np.empty_like(theta)
        dW, db = self.network.unpack(theta_dot)
        if self._short:
            self._linear(weights, biases, dW, db)
            return theta_dot
        delta = self._run(weights, biases)
        delta -= self.Y
        delta *= -self.kappa
        for i in range(len(weights) - 1, -1, -1):
            np.matmul(delta.T, self._a[i], out=dW[i])
            if db is not None:
                np.sum(delta, axis=0, out=db[i])
            if i > 0:
                delta = self._send(i, delta, weights[i])
                if self.network.activations[i - 1] != "linear":
                    delta *= self._sigmas[i - 1].slope(self._h[i - 1])
        return theta_dot

    def _send(self, i: int, delta: Floats, weight: Floats) -> Floats:
        """The error that layer i + 1 sends to the activities it reads, from its own δ."""
        return self.rule.transport(delta, self.rule.feedback(weight, self.states[i]))

    def _linear(
        self, weights: list[Floats], biases: list[Floats] | None, dW: list[Floats], db: list[Floats] | None
    ) -> None:
        """The same field of a linear net through m × width matrices only, never n × width: fast for wide layers."""
        P, constant = weights[-1], 0.0 if biases is None else biases[-1]
        for i in range(len(weights) - 2, -1, -1):
            if biases is not None:
                constant = constant + P @ biases[i]
            P = P @ weights[i]
        delta = self.X @ P.T
        delta += constant
        delta -= self.Y
        delta *= -self.kappa
        total = delta.sum(axis=0)
        carried = [delta.T @ self.X]  # δ_Lᵀ a_{i-1}, (m, in_i)
        for i in range(len(weights) - 1):
            carried.append(carried[-1] @ weights[i].T)
            if biases is not None:
                carried[-1] += np.outer(total, biases[i])
        dW[-1][...] = carried[-1]
        if db is not None:
            db[-1][...] = total
        C = None  # δ_i = δ_L C_iᵀ
        for i in range(len(weights) - 2, -1, -1):
            B = self.rule.feedback(weights[i + 1], self.states[i + 1])
            C = B.T if C is None else B.T @ C
            np.matmul(C, carried[i], out=dW[i])
            if db is not None:
                np.matmul(C, total, out=db[i])

    def error(self, theta: Floats) -> Floats:
        """The error e = output − Y, (n, m), a new array."""
        return self._run(*self.network.unpack(theta)) - self.Y

    def forward(self, theta: Floats) -> Floats:
        """Outputs (n, m), a new array."""
        return self._run(*self.network.unpack(theta)).copy()

    def loss(self, theta: Floats) -> float:
        """(κ/2)‖e‖²."""
        return 0.5 * self.kappa * float(np.sum(self.error(theta) ** 2))

    def feedback(self, theta: Floats) -> list[Floats | None]:
        """[None, B_2 … B_L] at θ: the first layer sends no error on."""
        weights, _ = self.network.unpack(theta)
        later = zip(weights[1:], self.states[1:], strict=True)
        return [None, *(self.rule.feedback(w, state) for w, state in later)]
