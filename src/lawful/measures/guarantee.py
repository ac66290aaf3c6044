"""The corollary's guarantee during training: a lower bound on ⟨W, B⟩, and when finite steps will have used it up."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lawful.conservation.neuron import NeuronLaw, Term
from lawful.ledger.ledger import Ledger


@dataclass(frozen=True)
class Guarantee:
    """What a law says about the alignment of the weights that read a site, per channel j.

    Where Ψ = ⟨W, B⟩, k⟨W_{i+1}[:,j], B_{i+1}[:,j]⟩ = ½‖W_i[j]‖² + ½b_i[j]² − q_j ≥ −q_j. The flow keeps q_j, so −q_j(0)
    is guaranteed for all time; a step of finite size moves the bound by exactly what the ledger books.

    Attributes:
        law: the site.
        start: −q_j(0), the bound of the flow (channels,).
        bound: −q_j now (channels,).
        alignment: k⟨W, B⟩_j now (channels,), never below ``bound``.
        erosion: what the bound loses per step, over the window looked at (channels,).
        step: the step at which the bound reaches zero at this rate (channels,): now where it has, inf where it rises.
    """

    law: str
    start: torch.Tensor
    bound: torch.Tensor
    alignment: torch.Tensor
    erosion: torch.Tensor
    step: torch.Tensor

    @property
    def layer(self) -> Guarantee:
        """The same for the sum over channels, which is Theorem 5.1's: each of shape (1,)."""
        bound, erosion = self.bound.sum().reshape(1), self.erosion.sum().reshape(1)
        return Guarantee(
            self.law,
            self.start.sum().reshape(1),
            bound,
            self.alignment.sum().reshape(1),
            erosion,
            _forecast(float(self.step_now), bound, erosion),
        )

    step_now: int = 0
    """The number of steps made so far."""


def guarantees(ledger: Ledger, *, window: int | None = None) -> list[Guarantee]:
    """The guarantee of every neuron law whose readers have Ψ = ⟨W, B⟩ (fixed feedback, sign rules).

    The forecast is linear: as a rule steps shrink while training settles, so it comes early rather than late.

    Args:
        ledger: in use or finished.
        window: look at the erosion of about so many last steps, as far as ``ledger.history`` goes back; by default
            of all steps.
    """
    names = {name for law in ledger.laws for name in law.parameters}
    theta = {n: p.detach().double() for n, p in ledger.model.named_parameters(remove_duplicate=False) if n in names}
    now = ledger.values()
    since, past = _past(ledger, window)
    found, at = [], 0
    for law in ledger.laws:
        own = slice(at, at := at + len(law.names))
        if not isinstance(law, NeuronLaw):
            continue
        readers = [term for term in law.terms if term.coefficient < 0]
        if not readers or not all(_is_alignment(term, theta) for term in readers):
            continue
        alignment = -torch.stack([term.value(theta) for term in readers]).sum(0)
        erosion = (now[own] - past[own]) / max(ledger.steps - since, 1)
        step = _forecast(float(ledger.steps), -now[own], erosion)
        found.append(Guarantee(law.name, -ledger.start[own], -now[own], alignment, erosion, step, ledger.steps))
    return found


def _past(ledger: Ledger, window: int | None) -> tuple[int, torch.Tensor]:
    if window is None:
        return 0, ledger.start
    records = [(0, ledger.start), *((step, values) for step, values, _ in ledger.history)]
    wanted = ledger.steps - window
    return max((record for record in records if record[0] <= max(wanted, 0)), key=lambda record: record[0])


def _is_alignment(term: Term, theta: dict[str, torch.Tensor]) -> bool:
    """Whether Ψ(W) = W ⊙ B element by element."""
    weight = theta[term.slices.parameter]
    weight = torch.where(weight == 0, 1.0, weight)  # where every Ψ vanishes
    return torch.allclose(term.potential.value(weight), weight * term.potential.feedback(weight), rtol=1e-6, atol=0)


def _forecast(now: float, bound: torch.Tensor, erosion: torch.Tensor) -> torch.Tensor:
    left = torch.where(erosion > 0, bound / erosion.clamp_min(torch.finfo(torch.float64).tiny), torch.inf)
    return now + torch.where(bound <= 0, 0.0, left)
