"""Deep linear nets under feedback alignment in exact low-dimensional form, whatever the widths."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from lawful.errors import SettingError
from lawful.flows.activations import Floats
from lawful.flows.feedback import numpy_states
from lawful.flows.field import check_data
from lawful.flows.network import Network
from lawful.flows.span import Motion, Span
from lawful.rules.feedback_alignment import FeedbackAlignment


class _Reduced(abc.ABC):
    """What flow and descent share: data, the span, and the lift to the full network."""

    def __init__(
        self,
        network: Network,
        X: ArrayLike,
        Y: ArrayLike,
        *,
        rule: FeedbackAlignment | None = None,
        states: Sequence[Mapping[str, Floats]] | None = None,
        kappa: float = 1.0,
    ) -> None:
        self.X, self.Y, self.kappa = check_data(network, X, Y, kappa)
        if states is None:
            if not isinstance(rule, FeedbackAlignment):
                raise SettingError(f"the exact reduction needs fixed feedback: rule=FeedbackAlignment(…); got {rule!r}")
            states = numpy_states(rule, network)
        self.network = network
        self.states = tuple(states)
        self.span = Span(network, [None, *(state["B"] for state in self.states[1:])])
        self.num_hidden, self.m, self.n0 = network.depth - 1, network.widths[-1], network.widths[0]
        self._skew = np.tril_indices(self.m, -1)
        self.theta0 = np.zeros(self._size())

    @abc.abstractmethod
    def _size(self) -> int:
        """How many coordinates the reduced state has."""

    @abc.abstractmethod
    def _locate(self, theta: Floats) -> Motion:
        """Where the reduced state is, in the letters of theory: V_i, s and the small matrices."""

    def _split(self, theta: Floats) -> tuple[Floats, Floats, Floats]:
        end = self.n0 * self.m
        bias_end = end + self.m * self.span.bias
        s = theta[end:bias_end] if self.span.bias else np.zeros(self.m)
        return theta[:end].reshape(self.n0, self.m), s, theta[bias_end:]

    def _outputs(self, at: Motion, X: Floats) -> Floats:
        out = X @ at.P[:, : self.n0].T
        return out + at.P[:, -1] if self.span.bias else out

    def _rates(self, at: Motion, X: Floats, Y: Floats) -> tuple[Floats, Floats, list[Floats]]:
        delta = self._outputs(at, X) - Y
        delta *= self.kappa
        U_dot, s_dot = X.T @ delta, delta.sum(axis=0)
        if not self.span.bias:
            s_dot = np.zeros(self.m)
        return U_dot, s_dot, self.span.drive(at, U_dot, s_dot)

    def forward(self, theta: Floats) -> Floats:
        """Outputs (n, m) of the full network at the reduced state θ."""
        return self._outputs(self._locate(theta), self.X)

    def error(self, theta: Floats) -> Floats:
        """The error e = output − Y, (n, m)."""
        return self.forward(theta) - self.Y

    def loss(self, theta: Floats) -> float:
        """(κ/2)‖e‖²."""
        return 0.5 * self.kappa * float(np.sum(self.error(theta) ** 2))

    def end_to_end(self, theta: Floats) -> tuple[Floats, Floats]:
        """The map x ↦ Px + c of the full network: P (m, n_0) and c (m,)."""
        P = self._locate(theta).P
        return P[:, : self.n0].copy(), P[:, -1].copy() if self.span.bias else np.zeros(self.m)

    def lift(self, theta: Floats) -> Network:
        """The full network at the reduced state θ: W_i = W_i(0) − C_iV_iᵀ, b_i = b_i(0) − C_i s."""
        at = self._locate(theta)
        V, weights = at.U, []
        for i, (W, C) in enumerate(zip(self.network.weights, self.span.C, strict=True)):
            weights.append(W - C @ V.T)
            if i < self.num_hidden:
                V = W @ V - C @ at.S[i]
                if self.network.biases is not None:
                    V += np.outer(self.network.biases[i], at.s)
        biases = None
        if self.network.biases is not None:
            biases = [b - C @ at.s for b, C in zip(self.network.biases, self.span.C, strict=True)]
        return Network.make(weights, biases, activation=self.network.activations)


class ReducedFlow(_Reduced):
    """The flow of a deep linear net under FA as an ODE of dimension n_0 m + (L−1) m(m−1)/2 (+ m with biases).

    θ = (U, s, Ω_1 … Ω_{L−1}) with U̇ = XᵀE, ṡ = Σ_n E (E = κ·error) and Ω_i antisymmetric, from θ(0) = 0:

        W_i = W_i(0) − C_iV_iᵀ,  V_1 = U,  V_{i+1} = W_i(0)V_i + b_i(0)sᵀ − C_i(½V_iᵀV_i + ½ssᵀ + Ω_i),
        Ω̇_i = antisymmetric part of (V_iᵀV̇_i + s ṡᵀ),  V̇_{i+1} = W_iV̇_i + b_iṡᵀ.

    Exact, no approximation; after the Gram matrices of the initial state, a step costs nothing that grows with a
    width, at any depth.  An instance is a vector field for :func:`lawful.flows.solve.solve`.

    Args:
        network: the initial network, linear.
        X: inputs (n, n_0).
        Y: targets (n, m) or (n,).
        rule: the feedback alignment that draws the B's; or
        states: the B's themselves (:func:`lawful.flows.feedback.given_feedback`).
        kappa: κ of the loss (κ/2)‖e‖².

    Raises:
        NoLawError: a network that is not linear.
        SettingError: neither rule nor states, or shapes that do not fit.

    Example:
        >>> import numpy as np
        >>> net = Network.make([[[1.0]], [[2.0]]])  # two scalars: w1 = 1 − bu, w2 = 2 − u + bu²/2
        >>> flow = ReducedFlow(net, [[1.0]], [0.0], states=({}, {"B": np.array([[0.5]])}))
        >>> [w.item() for w in flow.lift(np.array([2.0])).weights]
        [0.0, 1.0]
    """

    def _size(self) -> int:
        return self.n0 * self.m + self.m * self.span.bias + self.num_hidden * len(self._skew[0])

    def _locate(self, theta: Floats) -> Motion:
        U, s, rest = self._split(theta)
        omegas = np.zeros((self.num_hidden, self.m, self.m))
        if len(self._skew[0]):
            rows, columns = self._skew
            omegas[:, rows, columns] = rest.reshape(self.num_hidden, len(rows))
            omegas[:, columns, rows] = -omegas[:, rows, columns]
        return self.span.locate(U, s, list(omegas), whole=False)

    def __call__(self, theta: Floats) -> Floats:
        """θ̇, a new array."""
        U_dot, s_dot, S_dot = self._rates(self._locate(theta), self.X, self.Y)
        parts = [U_dot.ravel()]
        if self.span.bias:
            parts.append(s_dot)
        parts.extend(0.5 * (R - R.T)[self._skew] for R in S_dot)
        return np.concatenate(parts)


class ReducedDescent(_Reduced):
    """Plain SGD on a deep linear net under FA, exactly: any learning rate, any minibatches.

    θ = (U, s, S_1 … S_{L−1}) with S_i = Σ_t (V_iᵀΔV_i + sΔsᵀ) (m × m, no symmetry in discrete time) and
    V_{i+1} = W_i(0)V_i + b_i(0)sᵀ − C_iS_i; one Euler step of θ is one SGD step of the full network.

    An instance is a vector field for :func:`lawful.flows.descent.descend` (full batch); :meth:`step` takes a
    minibatch.  Arguments as in :class:`ReducedFlow`.
    """

    def _size(self) -> int:
        return self.n0 * self.m + self.m * self.span.bias + self.num_hidden * self.m**2

    def _locate(self, theta: Floats) -> Motion:
        U, s, rest = self._split(theta)
        return self.span.locate(U, s, list(rest.reshape(self.num_hidden, self.m, self.m)), whole=True)

    def velocity(self, theta: Floats, rows: ArrayLike | slice = slice(None)) -> Floats:
        """Update of θ per unit of learning rate on the samples ``rows``."""
        index = rows if isinstance(rows, slice) else np.asarray(rows)
        U_dot, s_dot, S_dot = self._rates(self._locate(theta), self.X[index], self.Y[index])
        return np.concatenate([U_dot.ravel(), *([s_dot] if self.span.bias else []), *(R.ravel() for R in S_dot)])

    def __call__(self, theta: Floats) -> Floats:
        """The update on the full batch."""
        return self.velocity(theta)

    def step(self, theta: Floats, lr: float, rows: ArrayLike) -> Floats:
        """θ after one SGD step with learning rate ``lr`` on the minibatch ``rows``."""
        return theta + lr * self.velocity(theta, rows)
