"""The ledger: watches laws during training and books every change of q under its cause."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from lawful.conservation.base import LINEAR, Law, LawSet
from lawful.conservation.combination import Before, Combination, Moves, moves
from lawful.conservation.derive import laws_of
from lawful.conservation.neuron import Together
from lawful.conservation.run import learning
from lawful.errors import NoLawError, SettingError
from lawful.ledger.books import Books
from lawful.ledger.causes import DECAY, RULE, is_retraceable, names_of, owned, retrace, split_step
from lawful.ledger.rule_part import EPS, FROZEN, RATES, renamed

FINITE: Final = "finite step"
BETWEEN: Final = "between steps"
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

    A step costs one pass over the tracked weights, and over what the optimiser keeps of them, where numba is installed
    (``pip install 'lawful[fast]'``; it compiles for a second or a few, once, where a weight has 2¹⁷ elements or more),
    and a few passes by torch elsewhere. Nothing is copied for SGD of every kind and Adam; one copy of the tracked
    weights is kept for other optimisers, for AdamW with decay, Adam in half precision, with ``capturable`` or with
    tensors for lr or β, and under sign rules. The cheapest books are those of
    ``split_every=10**9``: the finite step at every step, exactly, and all first-order change together under "not
    split", which is found from q when it is asked for.

    In float64 the books close to 1e-10 relative. A float32 weight is rounded by up to 2⁻²⁴ of itself at every step, so
    that after T steps |q − q₀ − Σ parts| ≤ T · 2⁻²³ · (‖W_p[j]‖² + b_j² + k⟨|B|, |W_c|⟩_j), at its largest so far;
    rounding has no preferred sign, and what is seen grows like √T. A law all of whose books are within
    :meth:`rounding`, √(T + 1) · eps · Σ|terms|, counts as zero: in bfloat16 a small law does after some thousand steps.
    Gradients that are computed in less precision than the weights have, as under autocast, conserve to theirs alone.

    Args:
        model: the model in training.
        optimizer: its optimiser. What else moves q (another optimiser, feedback that learns, a projection, an edit)
            is booked as "between steps".
        laws: what to follow; by default every law of ``laws_of(model, args)`` but the matrices.
        args: example inputs for ``laws_of``.
        split_every: split the first-order change only at every n-th step, and book that of the others as "not split"
            (together with what happens between steps); the finite-step part is exact at every step.
        record_every: keep q and the parts in ``history`` every so many steps (0: never).

    A change through ``.data`` (``p.data.clamp_()``, ``p.data.mul_(0.9)``) leaves no trace in torch that could be looked
    for: it is booked nowhere and shows as a residual. ``with torch.no_grad(): p.mul_(0.9)``, or an assignment to
    ``p.data``, is booked as "between steps". What another hook, or a closure, does to the weights within a step of SGD
    or Adam shows as a residual too.

    A model without a law has an empty ledger, which prints why; its ``residual`` and ``violation`` raise
    :class:`NoLawError`: nothing was tested. The rule must stay on the model for as long as the ledger is read.

    Raises:
        SettingError: a negative interval; laws of complex parameters, or none of whose parameters the optimiser holds;
            on entering, a ledger that is in use.

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
        if laws is None:
            with learning(model):  # what a frozen layer withholds has a part of its own
                laws = laws_of(model, args).of_kind("neuron", "scale", "shift", "bias")
        self.laws = laws
        self.split_every, self.record_every = split_every, record_every
        names = {name for law in self.laws for name in law.parameters}
        everything = dict(model.named_parameters(remove_duplicate=False))
        self._tracked = {name: everything[name] for name in everything if name in names}
        self._names = names_of(self._tracked)
        self._check()
        self._potentials = list({id(psi): psi for law in self.laws for psi in law.potentials}.values())
        self._smooth = all(psi.curvature is not None for psi in self._potentials)
        self._handles: list[Any] = []
        self._copy: dict[str, torch.Tensor] = {}
        self._open_books()

    def _check(self) -> None:
        for name, p in self._tracked.items():
            if p.is_complex():
                raise SettingError(f"Ledger: {name} is complex ({p.dtype}); laws are stated for real parameters")
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if self._tracked and not any(id(p) in held for p in self._tracked.values()):
            raise SettingError(
                f"Ledger: the optimizer holds none of the parameters that the laws read ({', '.join(self._tracked)}); "
                "expected the optimizer of this model, made after the model was moved or copied"
            )

    def _open_books(self) -> None:
        self.steps = 0
        self.history: list[tuple[int, torch.Tensor, dict[str, torch.Tensor]]] = []
        self._books = Books({})
        self._unsplit = self._followed = self._edited = self._stepping = False
        self._together = Together(self.laws)
        self.start, self._versions = self.values(), self._version()

    # -- the numbers -----------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """One name per conserved number, the order of every tensor here."""
        return self.laws.names

    def values(self) -> torch.Tensor:
        """Q now, float64."""
        theta = {name: p.detach() for name, p in self._tracked.items()}
        with torch.no_grad():
            found = [law.value(theta).reshape(-1).double() for law in self.laws]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)

    @property
    def parts(self) -> dict[str, torch.Tensor]:
        """Cause -> what it has added to q."""
        self._settle()
        return self._books.parts

    @property
    def scale(self) -> torch.Tensor:
        """What "relative" means: |q₀| + Σ|parts|."""
        total = self.start.abs()
        for part in self.parts.values():
            total = total + part.abs()
        return total

    @property
    def residual(self) -> torch.Tensor:
        """|q − q₀ − Σ parts| relative: whether the books close. Raises NoLawError where no law is followed."""
        self._need_laws()
        scale = self.scale
        return self._relative(self._open(), scale)

    @property
    def violation(self) -> torch.Tensor:
        """The rule's own part, relative: zero when the law holds and the backward pass is what it claims to be.

        Raises NoLawError where no law is followed.
        """
        self._need_laws()
        return self._relative(self.parts.get(RULE, torch.zeros_like(self.start)), self.scale)

    def _need_laws(self) -> None:
        if not len(self.laws):
            why = "; ".join(f"{site}: {reason}" for site, reason in self.laws.reasons.items()) or "no layer writes here"
            raise NoLawError(f"Ledger: it follows no law, so it has tested nothing ({why})")

    def _relative(self, amount: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Amount / scale; zero for a law that is zero, and stays so, to the rounding of its own terms."""
        return torch.where((amount == 0) | (scale <= self.rounding()), 0.0, amount.abs() / scale)

    def rounding(self) -> torch.Tensor:
        """√(steps + 1) · eps · Σ|terms| of every law: a sum such as Σ_j b_j is no smaller than its summands allow.

        A step rounds w by up to eps·|w|/2, either way: after T steps that is a random walk of standard deviation at
        most √T · eps · Σ|terms| / √12, and this bound is 3.5 of them. The worst case, T times a step's, is never seen
        and would hide every violation in bfloat16 after 128 steps.

        A law that is linear sums gradients which cancel, and what is left of them is rounded at the size of the
        errors, however small the biases that it moves: each of its terms counts as the largest weight of its module.
        """
        theta = {name: p.detach() for name, p in self._tracked.items()}
        with torch.no_grad():
            sizes = [
                torch.finfo(theta[law.parameters[0]].dtype).eps
                * law.magnitude(theta, self._raised(law) if law.kind in LINEAR else theta).reshape(-1).double()
                for law in self.laws
            ]
        return (self.steps + 1) ** 0.5 * torch.cat(sizes) if sizes else torch.zeros_like(self.start)

    def _raised(self, law: Law) -> dict[str, torch.Tensor]:
        """|θ| of what a law reads, nowhere below the largest number of the parameter's module and those in it."""
        raised = {}
        for name in law.parameters:
            module, p = self.model.get_submodule(name.rpartition(".")[0]), self._tracked[name]
            raised[name] = p.detach().abs().clamp_(min=max(map(_peak, module.parameters())))
        return raised

    @property
    def table(self) -> list[Row]:
        """Per law, summed over its channels."""
        if not len(self.laws):
            return []
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
        if not len(self.laws):
            reasons = (f"no law  {site}: {why}" for site, why in self.laws.reasons.items())
            return "\n".join(["no laws to follow", *reasons])
        causes = [cause for cause in self._order() if cause in self.parts]
        lines = ["  ".join(f"{title:>22}" for title in ("law", "q(0)", "q", *causes, "residual"))]
        for row in self.table:
            numbers = [row.start, row.now, *(row.parts[cause] for cause in causes)]
            lines.append("  ".join([f"{row.law:>22}", *(f"{x:>22.12g}" for x in numbers), f"{row.residual:>22.1e}"]))
        return "\n".join(lines)

    def _order(self) -> list[str]:
        return [*_CAUSES, *(cause for cause in self.parts if cause not in _CAUSES)]

    # -- keeping the books -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The books, to go on with in another process."""
        return {"start": self.start, "parts": dict(self.parts), "steps": self.steps, "history": list(self.history)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on with saved books, inside ``with``, once the model and the optimiser are as they were.

        Raises:
            SettingError: outside ``with``, which opens new books; books of other laws.
        """
        if not self._handles:
            raise SettingError("Ledger: entering it opens new books; load the saved ones inside `with`")
        if saved["start"].shape != self.start.shape:
            raise SettingError(
                f"Ledger: the saved books hold {saved['start'].numel()} conserved numbers; expected {len(self.names)}, "
                "those of the same laws"
            )
        self.start, self._books = saved["start"], Books(saved["parts"])
        self.steps, self.history = saved["steps"], list(saved["history"])
        self._unsplit = self._followed = self._edited = False
        self._together = Together(self.laws)
        self._versions = self._version()

    # -- following the optimiser -----------------------------------------------------------------------------------

    def __enter__(self) -> Ledger:
        """New books, from here on."""
        if self._handles:
            raise SettingError("Ledger: it is in use; leave it before entering it again")
        self._open_books()
        pre = self.optimizer.register_step_pre_hook(lambda *_: self._pre())
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
        self._handles, self._copy, self._stepping = [], {}, False
        if kind is None:
            self._settle()

    def _pre(self) -> None:
        self._look()
        self._stepping = True
        # the copy is spared where the step can be told afterwards, and ∇q at the weights before it to rounding
        self._retraced = self._smooth and is_retraceable(self.optimizer)
        if not self._retraced:
            with torch.no_grad():
                self._copy = {name: self._copied(name, p) for name, p in owned(self.optimizer, self._names).items()}

    def _copied(self, name: str, p: torch.Tensor) -> torch.Tensor:
        old = self._copy.get(name)
        fits = old is not None and (old.dtype, old.device, old.shape) == (p.dtype, p.device, p.shape)
        return old.copy_(p) if old is not None and fits else p.detach().clone()

    @torch.no_grad()
    def _post(self) -> None:
        skipped = _was_skipped(self.optimizer)
        if not skipped:
            theta, delta = self._step_taken()
            self._account(theta, delta)
            self.steps += 1
        self._stepping = False
        if not self._unsplit:  # of the feedback as before the step, for a step that moves it is an edit
            self._versions = self._weight_version(), self._versions[1]
        if not skipped and self.record_every and self.steps % self.record_every == 0:
            self.history.append((self.steps, self.values(), {cause: p.clone() for cause, p in self.parts.items()}))

    def _step_taken(self) -> tuple[Moves, Moves]:
        """The weights before the step, and the step."""
        if self._retraced:
            delta = retrace(self.optimizer, self._names)
            return Before(self._tracked, delta), delta
        if self._smooth and self.steps % self.split_every and all(w.itemsize > 2 for w in self._copy.values()):
            # all that is asked for can be told from the step, which takes the copy's place
            delta = {n: Combination(torch.sub(self._tracked[n], w, out=w)) for n, w in self._copy.items()}
            return Before(self._tracked, delta), delta
        now, before = moves(self._tracked), moves(self._copy)
        return now | before, {name: now[name].minus(w) for name, w in before.items()}

    def _account(self, theta: Moves, delta: Moves) -> None:
        if not len(self.laws):
            return
        if self.steps % self.split_every:
            self._unsplit = self._followed = True
            self._together.follow(theta, delta)
            return
        split = split_step(self.optimizer, self._names, theta)
        along = [*split.parts.values(), *([delta] if split.rest else [])]
        by_law = self._together.expand(theta, delta, along)
        rows = torch.cat(by_law, 1)
        if split.rest:
            rows[-1] -= rows[1:-1].sum(0)
        causes = (FINITE, *split.parts, *([split.rest] if split.rest else []))
        booked = renamed(dict(zip(causes, rows, strict=True)), by_law, self.laws, theta, split)
        self._books.add(tuple(booked), rows if tuple(booked) == causes else torch.stack(list(booked.values())))

    def _look(self) -> None:
        if self._unsplit:  # "not split" takes in what happens between the steps
            return
        versions = self._version()
        self._edited = self._edited or versions != self._versions
        self._versions = versions

    def _settle(self) -> None:
        """Book what moved q unseen: steps that were not split, and edits between the steps."""
        if self._followed:
            self._books.add((FINITE,), self._together.followed(self.start.device).unsqueeze(0))
            self._followed = False
        if self._stepping:
            return
        self._look()
        if self._unsplit or self._edited:
            self._books.add((SKIPPED if self._unsplit else BETWEEN,), self._open().unsqueeze(0))
            self._versions = self._version()
        self._unsplit = self._edited = False

    def _open(self) -> torch.Tensor:
        """The change of q that no part explains yet."""
        rest = self.values() - self.start
        for part in self._books.parts.values():
            rest = rest - part
        return rest

    def _version(self) -> tuple[list[int], list[int]]:
        """Changes with every edit of a weight, and of feedback."""
        return self._weight_version(), [t._version for psi in self._potentials for t in psi.state().values()]

    def _weight_version(self) -> list[int]:
        """Changes with every edit in place, or assignment to ``.data``, of a parameter."""
        tracked = self._tracked.values()
        return [p._version for p in tracked] + [p.data_ptr() for p in tracked]


def _peak(w: torch.Tensor) -> float:
    real = w.numel() and w.is_floating_point()
    return float(torch.linalg.vector_norm(w.detach(), float("inf"))) if real else 0.0


def _was_skipped(optimizer: Optimizer) -> bool:
    """Whether a fused step found an infinite gradient of a loss scaler and did nothing."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)
