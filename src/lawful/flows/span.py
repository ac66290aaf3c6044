"""The small subspaces that a deep linear net under feedback alignment never leaves, and their Gram matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lawful.errors import NoLawError, SettingError
from lawful.flows.activations import Floats
from lawful.flows.feedback import check_states
from lawful.flows.network import Network


def output_maps(network: Network, B: Sequence[Floats | None]) -> list[Floats]:
    """C_1 … C_L with δ_i = δ_L C_iᵀ: C_L = I (m × m), C_i = B_{i+1}ᵀ C_{i+1}, each (out_i, m)."""
    maps = [np.eye(network.widths[-1])]
    for feedback in reversed(B[1:]):
        if feedback is None:
            raise SettingError("every layer but the first needs a feedback weight B")
        maps.append(feedback.T @ maps[-1])
    return maps[::-1]


@dataclass(frozen=True, slots=True)
class Motion:
    """Where a reduced state is, in coordinates.

    Attributes:
        U: V_1 (n_0, m).
        s: ∫Σ_n δ_L (m,), zero without biases.
        N: V_iᵀ Φ_i, (m, k_i) a layer.
        S: S_i (m, m), one a hidden layer.
        Z: coordinates of V_i = Φ_i Z_i, (k_i, m) a layer.
        P: the end-to-end map (m, n_0 [+ 1]); with biases the last column is the constant.
    """

    U: Floats
    s: Floats
    N: list[Floats]
    S: list[Floats]
    Z: list[Floats]
    P: Floats


class Span:
    """Φ_1 = I, Φ_{i+1} = [W_i(0)Φ_i, b_i(0), C_i]: V_i and the forward signals of layer i stay in the range of Φ_i.

    Under W_i(t) = W_i(0) − C_iV_iᵀ, b_i(t) = b_i(0) − C_i s the forward signal a_i = W_i a_{i-1} + b_i lies in the
    range of Φ_{i+1} when a_{i-1} lies in that of Φ_i, and so does V_{i+1} = W_i(0)V_i + b_i(0)sᵀ − C_iS_i.
    After the Gram matrices G_i = Φ_iᵀΦ_i of k_i = n_0 + (i−1)(m [+ 1]) columns, no width appears any more.

    Args:
        network: the initial linear network.
        B: [B_1 (unused, may be None), B_2, … B_L], each of W_i's shape.

    Raises:
        NoLawError: an activation that is not linear.
        SettingError: the wrong number of B's.
    """

    def __init__(self, network: Network, B: Sequence[Floats | None]) -> None:
        if not network.linear:
            raise NoLawError(
                f"the exact reduction needs a linear network; got activations {', '.join(network.activations)}; "
                "integrate a lawful.flows.field.Field instead"
            )
        check_states(network, [{} for _ in B])
        self.C = output_maps(network, B)
        self.bias = network.biases is not None
        n0, self.m = network.widths[0], network.widths[-1]
        self.grams: list[Floats | None] = [None]  # G_1 = I
        blocks = self._blocks(network, 0, None)
        for i in range(1, network.depth):
            self.grams.append(_gram(blocks))
            blocks = self._blocks(network, i, blocks)
        self.readout = np.concatenate(blocks, axis=1)  # Φ_{L+1} (m, k_{L+1})
        self.start = np.eye(n0, n0 + self.bias)  # inputs, and the constant (0, …, 0, 1) with biases
        self.constant = np.zeros((1, n0 + self.bias))
        self.constant[0, -1] = 1.0

    def _blocks(self, network: Network, i: int, blocks: list[Floats] | None) -> list[Floats]:
        """The column blocks of Φ_{i+2} from those of Φ_{i+1}; None stands for the identity."""
        W = network.weights[i]
        image = [W] if blocks is None else [W @ block for block in blocks]
        column = [] if network.biases is None else [network.biases[i][:, None]]
        return [*image, *column, self.C[i]]

    def locate(self, U: Floats, s: Floats, skew: Sequence[Floats], *, whole: bool) -> Motion:
        """Everything that follows from U, s and S_i; ``skew`` holds S_i itself if ``whole``, else its skew part Ω_i."""
        Z, A = U, self.start
        Ns, Zs, Ss = [], [], []
        for i in range(len(self.C)):
            G = self.grams[i]
            N = Z.T if G is None else Z.T @ G
            passed = N @ A
            Ns.append(N)
            Zs.append(Z)
            if self.bias:
                passed[:, -1] += s
                A = np.concatenate([A, self.constant, -passed])
            else:
                A = np.concatenate([A, -passed])
            if i < len(skew):
                S = skew[i] if whole else skew[i] + 0.5 * (N @ Z + np.outer(s, s))
                Ss.append(S)
                Z = np.concatenate([Z, s[None], -S] if self.bias else [Z, -S])
        return Motion(U, s, Ns, Ss, Zs, self.readout @ A)

    def drive(self, at: Motion, U_dot: Floats, s_dot: Floats) -> list[Floats]:
        """Ṡ_i = V_iᵀV̇_i + s ṡᵀ for every hidden layer."""
        Z_dot, rates = U_dot, []
        outer = np.outer(at.s, s_dot)
        for N in at.N[:-1]:
            S_dot = N @ Z_dot + outer
            rates.append(S_dot)
            Z_dot = np.concatenate([Z_dot, s_dot[None], -S_dot] if self.bias else [Z_dot, -S_dot])
        return rates


def _gram(blocks: list[Floats]) -> Floats:
    return np.block([[p.T @ q for q in blocks] for p in blocks])
