"""The ledger: watches laws during training and books every change of q under its cause."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from lawful.conservation.base import LawSet
from lawful.conservation.derive import laws_of
from lawful.errors import SettingError
from lawful.ledger.causes import DECAY, RULE, directions, plain_steps

FINITE: Final = "finite step"
BETWEEN: Final = "between steps"
RATES: Final = "unequal learning rates"
FROZEN: Final = "frozen parameters"
EPS: Final = "eps of a norm"
SKIPPED: Final = "not split"

_CAUSES: Final = (RULE, FINITE, DECAY, "momentum", "preconditioning", RATES, FROZEN, EPS, BETWEEN, SKIPPED)


@dataclass(frozen=True)
class Row:
    """One law of the ledger, its numbers summed over its channels; the residual is the largest of them."""

    law: str
    start: float
    now: float
    parts: Mapping[str, float]
    residual: float


class Ledger:
    """Follows laws through a training loop; per law q(t) = q(0) + Σ parts, to rounding.

    For the total step Δ of any optimiser, q(θ+Δ) − q(θ) = ⟨∇q, Δ⟩ + drift: the second is "finite step", exact for any
    step size; the first is linear in Δ and is booked under "rule" (−lr·g: zero when the law and the backward pass are
    right), "weight decay" (−lr·λW), "momentum" (−lr(m̂ − g)), "preconditioning" (the rest).

    Args:
        model: the model in training.
        optimizer: its optimiser. What else moves q (another optimiser, feedback that learns, a projection, an edit)
            is booked as "between steps".
        laws: what to follow; by default every law of ``laws_of(model, args)`` but the matrices.
        args: example inputs for ``laws_of``.
        split_every: split the first-order change only at every n-th step, and book that of the others as "not
            split"; the finite-step part is exact at every step.
        record_every: keep q and the parts in ``history`` every so many steps (0: never).

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with Ledger(model, optimizer) as ledger:
    ...     for _ in range(3):
    ...         optimizer.zero_grad()
    ...         model(torch.ones(4, 2, dtype=torch.float64)).square().sum().backward()
    ...         optimizer.step()
    >>> bool(ledger.residual.max() < 1e-12), bool(ledger.violation.max() < 1e-12)
    (True, True)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        laws: LawSet | None = None,
        *,
        args: Any = (),
        split_every: int = 1,
        record_every: int = 0,
    ) -> None:
        if split_every < 1 or record_every < 0:
            raise SettingError(
                f"Ledger: expected split_every >= 1 and record_every >= 0; got {split_every} and {record_every}"
            )
        self.model, self.optimizer = model, optimizer
        self.laws = laws_of(model, args).of_kind("neuron", "scale", "shift", "bias") if laws is None else laws
        self.split_every, self.record_every = split_every, record_every
        names = {name for law in self.laws for name in law.parameters}
        everything = dict(model.named_parameters(remove_duplicate=False))
        self._tracked = {name: everything[name] for name in everything if name in names}
        self._potentials = list({id(psi): psi for law in self.laws for psi in law.potentials}.values())
        self._handles: list[Any] = []
        self.steps = 0
        self.history: list[tuple[int, torch.Tensor, dict[str, torch.Tensor]]] = []
        self.parts: dict[str, torch.Tensor] = {}
        self.start = self.values()
        self._unsplit = False
        self._before: dict[str, torch.Tensor] | None = None
        self._versions = self._version()

    # -- the numbers -----------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """One name per conserved number, the order of every tensor here."""
        return self.laws.names

    def values(self) -> torch.Tensor:
        """Q now, float64."""
        theta = {name: t.double() for name, t in self._theta().items()}
        return self._each(lambda law: law.value(theta))

    @property
    def scale(self) -> torch.Tensor:
        """What "relative" means: |q₀| + Σ|parts|."""
        total = self.start.abs()
        for part in self.parts.values():
            total = total + part.abs()
        return total

    @property
    def residual(self) -> torch.Tensor:
        """|q − q₀ − Σ parts| relative: whether the books close."""
        self._settle()
        return _relative(self._open(), self.scale)

    @property
    def violation(self) -> torch.Tensor:
        """The rule's own part, relative: zero when the law holds and the backward pass is what it claims to be."""
        return _relative(self.parts.get(RULE, torch.zeros_like(self.start)), self.scale)

    @property
    def table(self) -> list[Row]:
        """Per law, summed over its channels."""
        self._settle()
        now, residual = self.values(), self.residual
        rows, at = [], 0
        for law in self.laws:
            own = slice(at, at := at + len(law.names))
            parts = {cause: float(part[own].sum()) for cause, part in self.parts.items()}
            rows.append(
                Row(law.name, float(self.start[own].sum()), float(now[own].sum()), parts, float(residual[own].max()))
            )
        return rows

    def __repr__(self) -> str:
        causes = [cause for cause in self._order() if cause in self.parts]
        lines = ["  ".join(f"{title:>22}" for title in ("law", "q(0)", "q", *causes, "residual"))]
        for row in self.table:
            numbers = [row.start, row.now, *(row.parts[cause] for cause in causes)]
            lines.append("  ".join([f"{row.law:>22}", *(f"{x:>22.12g}" for x in numbers), f"{row.residual:>22.1e}"]))
        return "\n".join(lines)

    def _order(self) -> list[str]:
        return [*_CAUSES, *(cause for cause in self.parts if cause not in _CAUSES)]

    # -- following the optimiser -----------------------------------------------------------------------------------

    def __enter__(self) -> Ledger:
        self.start, self._versions = self.values(), self._version()
        pre = self.optimizer.register_step_pre_hook(lambda _, args, kwargs: self._pre(_has_closure(args, kwargs)))
        post = self.optimizer.register_step_post_hook(lambda *_: self._post())
        # before any hook that moves the feedback, so that the step is judged by the feedback it was made with
        hooks: Any = self.optimizer._optimizer_step_post_hooks
        hooks.move_to_end(post.id, last=False)
        self._handles = [pre, post]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._before = None
        if kind is None:
            self._settle()

    def _splits(self) -> bool:
        return self.steps % self.split_every == 0

    @torch.no_grad()
    def _pre(self, with_closure: bool) -> None:
        if self._splits() or self._version() != self._versions:
            self._settle()
        self._before = self._theta()
        # a closure has yet to compute the gradients: those in place are of the step before
        plain = None if with_closure else plain_steps(self.optimizer, self._tracked)
        if plain is not None:  # the step is known before it is made, so no copy of W is needed
            self._account(self._before, plain)
            self._before = None
        else:
            self._before = {name: t.clone() for name, t in self._before.items()}

    @torch.no_grad()
    def _post(self) -> None:
        if self._before is not None:
            after = self._theta()
            self._account(self._before, {name: after[name] - t for name, t in self._before.items()})
            self._before = None
        self._versions = self._version()
        self.steps += 1
        if self.record_every and self.steps % self.record_every == 0:
            self._settle()
            self.history.append((self.steps, self.values(), {cause: p.clone() for cause, p in self.parts.items()}))

    def _account(self, before: dict[str, torch.Tensor], delta: dict[str, torch.Tensor]) -> None:
        self._book(FINITE, self._each(lambda law: law.drift(before, delta)))
        if self._splits():
            self._split(before, delta)
        else:
            self._unsplit = True

    def _split(self, before: dict[str, torch.Tensor], delta: dict[str, torch.Tensor]) -> None:
        steps, lrs = directions(self.optimizer, self._tracked, before, delta)
        zero = {name: torch.zeros_like(t) for name, t in before.items()}
        for cause, step in steps.items():
            v = {**zero, **step}
            rates = [law.rate(before, v) for law in self.laws]
            if cause == RULE:
                self._book_rule(rates, before, v, lrs)
            else:
                self._book(cause, _join(rates))

    def _book_rule(
        self,
        rates: list[torch.Tensor],
        before: dict[str, torch.Tensor],
        v: dict[str, torch.Tensor],
        lrs: Mapping[str, float],
    ) -> None:
        """−lr·g keeps a law only at one learning rate on all of its parameters; the rest is named."""
        booked: dict[str, list[torch.Tensor]] = {}
        for i, (law, rate) in enumerate(zip(self.laws, rates, strict=True)):
            known = [lrs[name] for name in law.parameters if name in lrs]
            shares = {EPS if law.note else RULE: rate}
            if len(known) < len(law.parameters):
                shares = {FROZEN: rate}
            elif len(set(known)) > 1 and 0 not in known:
                even = law.rate(before, {n: v[n] * (known[0] / lrs[n]) for n in law.parameters})
                shares = {RULE: even, RATES: rate - even}
            for cause, share in shares.items():
                booked.setdefault(cause, [torch.zeros_like(r) for r in rates])[i] = share
        for cause, shares in booked.items():
            self._book(cause, _join(shares))

    def _settle(self) -> None:
        """Book what moved q since it was last booked: steps that were not split, or something between the steps."""
        if self._before is not None:  # in the middle of a step
            return
        versions = self._version()
        if self._unsplit or versions != self._versions:
            self._book(SKIPPED if self._unsplit else BETWEEN, self._open())
        self._unsplit, self._versions = False, versions

    def _open(self) -> torch.Tensor:
        """The change of q that no part explains yet."""
        rest = self.values() - self.start
        for part in self.parts.values():
            rest = rest - part
        return rest

    def _version(self) -> tuple[int, ...]:
        """Changes with every edit, in place, of a tracked parameter or of the feedback that reads it."""
        states = [t._version for psi in self._potentials for t in psi.state().values()]
        return (*(p._version for p in self._tracked.values()), *states)

    def _book(self, cause: str, amount: torch.Tensor) -> None:
        self.parts[cause] = self.parts[cause] + amount if cause in self.parts else amount

    def _theta(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self._tracked.items()}

    def _each(self, quantity: Any) -> torch.Tensor:
        with torch.no_grad():
            return _join([quantity(law) for law in self.laws])


def _has_closure(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether ``optimizer.step`` was called with a closure; ``args`` begin with the optimizer itself."""
    return any(callable(argument) for argument in (*args[1:], *kwargs.values()))


def _join(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.reshape(-1).double() for part in parts]) if parts else torch.zeros(0, dtype=torch.float64)


def _relative(amount: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.where(amount == 0, 0.0, amount.abs() / scale)
