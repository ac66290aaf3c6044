"""What SGD with decay and momentum makes of a law: predicted from q(0) and the finite steps, without any gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lawful.conservation.base import Law, Tensors, tensors
from lawful.ledger.ledger import FINITE, Ledger


class HeavyBall:
    """q_{s+1} = q_s + r_s + d_s with r_s = β(r_{s−1} + 2d_{s−1}) − p·η·λ·q_s, exact at any learning rate η.

    d_s is the second-order part of step s and r_s = ⟨∇q, Δ_s⟩; the recursion follows from
    Δ_s = βΔ_{s−1} − η(g_s + λθ_s) and ⟨∇q, g_s⟩ = 0. With β = 0 it is q_{s+1} = (1 − pηλ)q_s + d_s, close to e^{−pλt};
    with λ = 0 it is the momentum flow q̈ + γq̇ = ‖Ẇ_p‖² in steps (feedback alignment: d_s = ½‖Δ_p‖²).

    Args:
        q: q(0), an array of any kind.
        power: p, the degree of q in θ: 1 or 2; with λ = 0 a quadratic q need not be homogeneous.
        lr: η.
        decay: λ.
        momentum: β.

    References:
        Kunin et al. 2021, Neural Mechanics, Section 5.

    >>> form = HeavyBall(8.0, 1, lr=1.0, decay=0.5)
    >>> [form.step(0.0), form.step(0.0)]
    [4.0, 2.0]
    """

    def __init__(self, q: Any, power: int, *, lr: float, decay: float = 0.0, momentum: float = 0.0) -> None:
        self.q, self.power, self.lr, self.decay, self.momentum = q, power, lr, decay, momentum
        self.r = self.last = 0 * q

    def step(self, d: Any) -> Any:
        """The next q, given what the step adds by being finite."""
        self.r = self.momentum * (self.r + 2 * self.last) - self.power * self.lr * self.decay * self.q
        self.q = self.q + self.r + d
        self.last = d
        return self.q


def power_of(law: Law, theta: Tensors, *, decay: float) -> int | None:
    """The degree p with which ``law`` obeys :class:`HeavyBall`, or None where it has no closed form.

    Without decay q must be a polynomial of degree at most 2. With it q must also scale: ⟨∇q, θ⟩ = p·q, which
    ½‖W‖² − ⟨W, B⟩ does not, since decay shrinks the first twice as fast as the second.
    """
    if law.kind in ("shift", "bias"):
        return 1
    if any(potential.curvature is None for potential in law.potentials):
        return None
    if decay:
        q, scaled = law.value(theta), law.rate(theta, theta)
        if not torch.allclose(scaled, 2 * q, rtol=1e-9, atol=1e-9 * float(q.abs().max())):
            return None
    return 2


def constants(optimizer: torch.optim.Optimizer) -> tuple[float, float] | None:
    """(λ, β) of heavy-ball SGD with one setting for all parameters; None for any other optimiser.

    >>> constants(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1, momentum=0.5, weight_decay=0.1))
    (0.1, 0.5)
    """
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    if type(optimizer) is not torch.optim.SGD or any(group != groups[0] for group in groups):
        return None
    only = groups[0]
    if only["maximize"] or only["momentum"] and (only["nesterov"] or only["dampening"]):
        return None
    return float(only["weight_decay"]), float(only["momentum"])


class Predictions:
    """Predictions of the laws that have one, fed by the ledger step by step, and recorded when the ledger records."""

    def __init__(self, ledger: Ledger, optimizer: torch.optim.Optimizer) -> None:
        self.ledger = ledger
        found = constants(optimizer)
        decay, momentum = found or (0.0, 0.0)
        theta = tensors(ledger.model)
        self.forms: dict[int, tuple[slice, HeavyBall]] = {}
        at = 0
        for i, law in enumerate(ledger.laws):
            own = slice(at, at := at + len(law.names))
            power = None if found is None else power_of(law, theta, decay=decay)
            if power is not None:
                lr = float(optimizer.param_groups[0]["lr"])
                self.forms[i] = own, HeavyBall(ledger.start[own], power, lr=lr, decay=decay, momentum=momentum)
        self.booked = torch.zeros_like(ledger.start)
        self.history = {i: [form.q] for i, (_, form) in self.forms.items()}

    def step(self) -> None:
        """After every step of the optimiser."""
        booked = self.ledger.parts[FINITE]
        d, self.booked = booked - self.booked, booked
        for i, (own, form) in self.forms.items():
            form.step(d[own])
            if self.ledger.steps % self.ledger.record_every == 0:
                self.history[i].append(form.q)

    def state(self) -> dict[int, Any]:
        """What a checkpoint keeps."""
        return {i: (f.q, f.r, f.last, self.booked, self.history[i]) for i, (_, f) in self.forms.items()}

    def restore(self, state: Mapping[int, Any]) -> None:
        """Goes on from it."""
        for i, (form_q, r, last, booked, history) in state.items():
            form = self.forms[i][1]
            form.q, form.r, form.last, self.booked, self.history[i] = form_q, r, last, booked, history
