"""The velocity field of a direct rule: every hidden layer is taught by the output error itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike

from lawful.flows.activations import Floats
from lawful.flows.feedback import States
from lawful.flows.field import Field
from lawful.flows.network import Network
from lawful.rules.backprop import Backprop
from lawful.rules.base import generator_for
from lawful.rules.direct_base import DirectRule


def direct_states(rule: DirectRule, network: Network) -> States:
    """Draw D_i (outputs, out_i) for the hidden layers i = 1 … L−1, in the entries of the layers that read them.

    Entry i (counted from 0) belongs to the activities that weight i + 1 reads; the first, the inputs, is ``{}``.
    The streams are those of the activations "1", "3", … of ``nn.Sequential(Linear, activation, Linear, …)``.
    """
    states: list[dict[str, Floats]] = [{}]
    for i in range(1, network.depth):
        template = torch.zeros(network.widths[-1], network.widths[i], dtype=torch.float64)
        drawn = rule.init(template, generator_for(rule.seed, rule.stream(str(2 * i - 1))))
        states.append({key: value.numpy() for key, value in drawn.items()})
    return tuple(states)


class DirectField(Field):
    """θ̇ under a direct rule: δ_i = signal(κ e, D_i) ⊙ σ'(h_i), for direct feedback alignment (κ e D_i) ⊙ σ'(h_i).

    Args:
        network: architecture and initial parameters.
        direct: a direct rule.
        X: inputs (n, d).
        Y: targets (n, m) or (n,).
        kappa: κ of the loss (κ/2)‖e‖².
        states: D_i as :func:`direct_states` orders them (the default).

    References:
        Nøkland, *Direct Feedback Alignment Provides Learning in Deep Neural Networks*, NeurIPS 2016.
    """

    def __init__(
        self,
        network: Network,
        direct: DirectRule,
        X: ArrayLike,
        Y: ArrayLike,
        *,
        kappa: float = 1.0,
        states: Sequence[Mapping[str, Floats]] | None = None,
    ) -> None:
        given = direct_states(direct, network) if states is None else states
        super().__init__(network, Backprop(), X, Y, kappa=kappa, states=given)
        self.direct = direct
        self._short = False  # the short way of linear nets sends errors layer by layer

    def _send(self, i: int, delta: Floats, weight: Floats) -> Floats:
        """The signal of the output error, whatever δ the later layer had."""
        if i == self.network.depth - 1:
            self._output_delta = delta.copy()
        return np.asarray(self.direct.signal(self._output_delta, self.states[i]))

    def feedback(self, theta: Floats) -> list[Floats | None]:
        """[None, D_1 … D_{L−1}]: D_i (outputs, out_i) in the place of the weight that reads layer i."""
        return [None, *(state["D"] for state in self.states[1:])]
