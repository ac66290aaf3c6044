"""``lawcheck``: the laws as a test of a feedback rule's implementation, where gradcheck cannot be one.

A feedback rule's update is the gradient of nothing, but the instantaneous identity of every site,

    ⟨Ẇ_i[j], W_i[j]⟩ + b_j ḃ_j = k ⟨Ẇ_{i+1}[:, j], B_{i+1}[:, j]⟩,

holds for every rule, loss, batch and error signal; so do the shift laws, and the scale laws but for what the eps of the
norms adds, which is known exactly (:mod:`lawful.conservation.norm_calls`). It is blind to gradient components
orthogonal to W_i[j], so the gradients are also compared with an explicit form, y = f(x₀, W) + f(x − x₀, B) at x₀ = x
held fixed, wherever each fed back weight sits in an affine leaf.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from lawful.attachment.attachment import attach
from lawful.conservation.base import LINEAR, Law, LawSet, tensors
from lawful.conservation.combination import Tensors
from lawful.conservation.derive import laws_of, potentials_of
from lawful.conservation.norm_calls import NormCall, amounts_of
from lawful.conservation.potential import SQUARE, Potential
from lawful.conservation.readout import direct_attachment, recorded
from lawful.conservation.run import inputs_of
from lawful.conservation.scale import ScaleLaw
from lawful.conservation.still import StillNorms
from lawful.errors import LawfulError, SettingError
from lawful.explicit import explicit_reference, shared_derivatives
from lawful.rules.base import Rule
from lawful.rules.feedback_alignment import FeedbackAlignment
from lawful.types import Array, State

TOLERANCE: Final = 1e-10
PROBES: Final = 3


Claim = torch.Tensor | Callable[[torch.Tensor], torch.Tensor]
"""The B that other people's code says it uses, or how it makes it from W."""


class UnlawfulError(LawfulError, AssertionError):
    """An implementation violates the identities of the rule it claims to be."""


@dataclass(frozen=True)
class Check:
    """One line of a lawcheck.

    Attributes:
        what: "identity", "gradient" or "potential".
        where: the site, or the parameter.
        violation: the largest relative violation over channels, error signals and random weights.
    """

    what: str
    where: str
    violation: float


@dataclass(frozen=True)
class LawCheck:
    """The result: ``ok`` when every violation is at most the tolerance; ``worst`` is the largest line of ``table``.

    ``unchecked`` names the laws that could not be tested, and why.
    """

    table: tuple[Check, ...]
    laws: LawSet
    tolerance: float = TOLERANCE
    unchecked: tuple[str, ...] = ()

    @property
    def worst(self) -> Check | None:
        """The line with the largest violation."""
        return max(self.table, key=lambda check: check.violation, default=None)

    @property
    def ok(self) -> bool:
        """Whether the backward pass could be checked at all, and nothing is violated."""
        seen = any(check.what != "potential" for check in self.table)
        return seen and all(check.violation <= self.tolerance for check in self.table)

    def __repr__(self) -> str:
        width = max((len(check.where) for check in self.table), default=0)
        lines = [
            f"{check.what:>9}  {check.where:<{width}}  {check.violation:8.1e}  "
            f"{'ok' if check.violation <= self.tolerance else 'VIOLATED'}"
            for check in self.table
        ]
        lines += [f"  no law  {site}: {why}" for site, why in self.laws.reasons.items()]
        lines += [f" unknown  {what}" for what in self.laws.unknown]
        lines += [f"unchecked  {what}" for what in self.unchecked]
        return "\n".join([f"LawCheck(ok={self.ok})", *lines])


def lawcheck(
    model: nn.Module,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    rule: Rule | Mapping[str, Rule] | None = None,
    feedback: Mapping[str, Claim] | None = None,
    loss_fn: Callable[[Any], torch.Tensor] | None = None,
) -> LawCheck:
    """Test the backward pass of a model against the laws of its rule, in float64, at several random weights.

    Args:
        model: attached, or with feedback code of its own. It is copied, not changed.
        args: example inputs, a tensor or a tuple.
        kwargs: keyword inputs.
        rule: attach this rule first (to an unattached model).
        feedback: for other people's code: dotted weight name -> the B that its backward pass claims to use, or a
            function W -> B where B follows the weight (``torch.sign``), for lawcheck draws weights of its own.
        loss_fn: outputs -> loss, instead of random error signals at the outputs.

    Returns:
        ``.ok``, ``.worst``, ``.table``.

    Raises:
        SettingError: both ``rule`` and ``feedback``, or ``rule`` on an attached model, or a B for no parameter; a
            parameter that is complex; violations where inputs are constant over all that a norm takes together.

    >>> import lawful
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> lawcheck(model, rule=lawful.FeedbackAlignment()).ok
    True
    >>> lawcheck(model, feedback={"2.weight": torch.ones(2, 4)}).ok  # it is backpropagation
    False
    """
    if rule is not None and feedback is not None:
        raise SettingError(
            "lawcheck: expected rule= or feedback=, got both; feedback= is for models that lawful did not attach"
        )
    for name, p in model.named_parameters():
        if p.is_complex():
            raise SettingError(f"lawcheck: {name} is complex ({p.dtype}); laws are stated for real parameters")
    twin = copy.deepcopy(model).double().requires_grad_(True)
    if rule is not None:
        attach(twin, rule)
    given = _given(twin, feedback)
    inputs, named = tree_map(_double, inputs_of(twin, args, kwargs))
    potentials = potentials_of(twin) if given is None else given
    own = {name: p.detach().clone() for name, p in twin.named_parameters()}
    _random_weights(twin, own, torch.Generator().manual_seed(PROBES))  # or laws come from a special initialisation
    derive = partial(laws_of, twin, inputs, named, potentials=potentials, identity=True)
    free, every = derive(output="free"), derive(output="softmax" if loss_fn is None else "free")
    laws = free.of_kind("neuron", "matrix", "bias", "range", "scale")  # exact for any error signal
    shifts = every.of_kind("shift")
    calls = {share.call for law in laws if isinstance(law, ScaleLaw) for share in law.norms}
    run = _Run(inputs, named, loss_fn)
    worst: dict[tuple[str, str], float] = {}
    unchecked: dict[str, str] = {}
    reference, compared = _reference(twin, potentials, run, unchecked)
    silent: set[tuple[str, str]] = set()
    for seed in range(PROBES):
        theta = _random_weights(twin, own, torch.Generator().manual_seed(seed))
        found = _identities(laws, theta, *run.backward(twin, seed, calls), unchecked)
        if len(shifts):
            gradients, _ = run.backward(twin, seed, axes=every.classes)
            found += [(_identity(law), _violation(law, theta, gradients, _near(law, gradients))) for law in shifts]
        if reference is not None:
            reference.load_state_dict(twin.state_dict())
            expected = run.backward(reference, seed)[0]
            found += _explicit(run.backward(twin, seed)[0], {name: expected[name] for name in compared})
        found += _potentials(potentials, theta)
        silent |= {key for key, violation in found if violation is None}
        for key, violation in found:
            if violation is not None:
                worst[key] = max(worst.get(key, 0.0), violation)
    for _, where in sorted(silent - worst.keys()):
        unchecked[where] = f"{where}: no error reached it"
    table = tuple(Check(what, where, violation) for (what, where), violation in worst.items())
    check = LawCheck(table, every, unchecked=tuple(unchecked.values()))
    if not check.ok:
        _refuse_still_norms(check, twin, run)
    return check


def _refuse_still_norms(check: LawCheck, twin: nn.Module, run: _Run) -> None:
    """Raise SettingError where the violations may be the rounding of a norm whose inputs do not vary."""
    with StillNorms() as still:
        run.outputs(twin)
    if still.found:
        raise SettingError(
            f"lawcheck: the numbers that reach {still.found[0]} do not vary (as if the example inputs were all alike, "
            "torch.ones say), so all that comes out of it is rounding, and so may the violations be; give inputs that "
            f"vary, such as torch.randn\n{check!r}"
        )


def assert_lawful(model: nn.Module, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> None:
    """:func:`lawcheck`, raising when it is not ok.

    Raises:
        UnlawfulError: with the whole table.
    """
    check = lawcheck(model, args, kwargs, **options)
    if not check.ok:
        raise UnlawfulError(f"expected every violation <= {check.tolerance:g}; got\n{check!r}")


# -- what is compared ----------------------------------------------------------------------------------------------


Found = list[tuple[tuple[str, str], float | None]]
"""(what, where) and its violation; None where all is zero, which says nothing."""


def _identities(
    laws: LawSet,
    theta: Tensors,
    gradients: Tensors,
    amounts: Mapping[NormCall, torch.Tensor],
    unchecked: dict[str, str],
) -> Found:
    """Every law's rate; what the eps of a norm adds to it is taken off. ``unchecked`` is told where that is unknown."""
    # what vanishes in front of a norm is rounding on both sides: it is compared with the rest of the model too
    floor = 1e-4 * max((float((p * gradients[n]).abs().max()) for n, p in theta.items() if p.numel()), default=0.0)
    found: Found = []
    for law in laws:
        if not isinstance(law, ScaleLaw):
            least = _near(law, gradients) if law.kind in LINEAR else floor
            found.append((_identity(law), _violation(law, theta, gradients, least)))
        elif why := _unknown_eps(law, amounts):
            unchecked[law.name] = f"{law.name} (scale): {why}"
        else:
            found.append((_identity(law), _violation(law, theta, gradients, floor, law.eps_rate(amounts))))
    return found


def _unknown_eps(law: ScaleLaw, amounts: Mapping[NormCall, torch.Tensor]) -> str:
    """Why what the eps of its norms adds is not known; "" where it is."""
    for call in (share.call for share in law.norms):
        if not call.form.sharp:
            return f"{call} rounds to lower precision ({call.form.eps:.1g}), so its eps is not known to rounding"
        if call not in amounts:
            return f"the error at the output of {call} is not seen, so neither is what its eps adds"
    return ""


def _reference(
    twin: nn.Module, potentials: Callable[[str], Potential], run: _Run, unchecked: dict[str, str]
) -> tuple[nn.Module | None, list[str]]:
    """An independent implementation, and the parameters whose gradients it can judge; ``unchecked`` hears of others."""
    if direct_attachment(twin) is not None:
        return None, []
    reference, beyond = explicit_reference(twin, potentials)
    if reference is None:
        unchecked["gradients"] = f"gradients: the explicit form is not written for {_some(beyond)}"
        return None, []
    shared = shared_derivatives(reference, run.outputs(reference))
    for function, names in shared.items():
        unchecked[function] = f"gradients of {_some(names)}: {function} has a derivative of its own, and no other"
    behind = {name for names in shared.values() for name in names}
    return reference, [name for name, _ in reference.named_parameters() if name not in behind]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _explicit(gradients: Tensors, expected: Tensors) -> Found:
    # a gradient that vanishes, such as that of a bias in front of a batch norm, is rounding: nothing to divide by
    floor = 1e-4 * max((float(g.abs().max()) for g in expected.values()), default=0.0)
    heard = {name: bool(g.any() or gradients[name].any()) for name, g in expected.items()}
    return [
        (("gradient", name), _difference(gradients[name], g, floor) if heard[name] else None)
        for name, g in expected.items()
    ]


def _potentials(potentials: Callable[[str], Potential], theta: Tensors) -> Found:
    named = ((name, potentials(name), weight) for name, weight in theta.items())
    return [(("potential", n), _mismatch(psi, w)) for n, psi, w in named if psi is not SQUARE and psi.exists(w)]


def _identity(law: Law) -> tuple[str, str]:
    return "identity", f"{law.name} ({law.kind})"


def _near(law: Law, gradients: Tensors) -> float:
    """The largest gradient of the module that a linear law is about, and not less than 1e-4 of the model's largest."""
    module = law.parameters[0].rpartition(".")[0]
    sizes = {name: float(g.abs().max()) for name, g in gradients.items() if g.numel()}
    own = max(size for name, size in sizes.items() if name.rpartition(".")[0] == module)
    return max(own, 1e-4 * max(sizes.values()))


def _violation(
    law: Law, theta: Tensors, gradients: Tensors, floor: float = 0.0, expected: torch.Tensor | float = 0.0
) -> float | None:
    size = law.magnitude(theta, gradients)
    rate = law.rate(theta, gradients)
    if not bool(size.any() or rate.any()):
        return None
    size = size.clamp(min=floor)
    return _peak((rate - expected).abs() / torch.where(size > 0, size, 1.0))


def _difference(got: torch.Tensor, expected: torch.Tensor, floor: float = 0.0) -> float:
    size = max(float(expected.abs().max()), float(got.abs().max()), floor)
    return _peak((got - expected).abs()) / size if size > 0 else 0.0


def _mismatch(potential: Potential, weight: torch.Tensor) -> float:
    """B against ∇Ψ by autograd."""
    leaf = weight.clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(potential.value(leaf).sum(), leaf)
    return _difference(potential.feedback(weight), gradient)


def _peak(x: torch.Tensor) -> float:
    """The largest entry; what is not finite counts as infinite."""
    return float(torch.nan_to_num(x, nan=float("inf")).max()) if x.numel() else 0.0


# -- how the gradients are made ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    inputs: tuple
    named: dict
    loss_fn: Callable[[Any], torch.Tensor] | None

    def outputs(self, model: nn.Module) -> Any:
        """Of one forward pass, with their graphs."""
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            return model(*self.inputs, **self.named)

    def backward(
        self, model: nn.Module, seed: int, calls: Iterable[NormCall] = (), axes: Sequence[int | None] = ()
    ) -> tuple[dict[str, torch.Tensor], dict[NormCall, torch.Tensor]]:
        """−Ẇ for a random error signal at every output, zero without an error, and what the norms ``calls`` add to E.

        ``axes``: of every output the axis over which its error sums to zero.
        """
        model.zero_grad(set_to_none=True)
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), recorded(model) as readouts:
            torch.manual_seed(seed)
            with amounts_of(model, calls) as heard:
                outputs = model(*self.inputs, **self.named)
                amounts = heard(outputs)
            self._send(outputs, seed, axes)
        parameters = model.named_parameters(remove_duplicate=False)
        gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for n, p in parameters}
        return {**gradients, **readouts}, amounts

    def _send(self, outputs: Any, seed: int, axes: Sequence[int | None]) -> None:
        if self.loss_fn is not None:
            self.loss_fn(outputs).backward()
            return
        generator = torch.Generator().manual_seed(1000 + seed)
        every = [y for y in tree_leaves(outputs) if isinstance(y, torch.Tensor)]
        ends, signals = [], []
        for y, axis in zip(every, axes or [None] * len(every), strict=True):
            if y.requires_grad:
                error = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)
                ends.append(y)
                signals.append(error if axis is None else error - error.mean(axis, keepdim=True))
        torch.autograd.backward(ends, signals)


@torch.no_grad()
def _random_weights(
    model: nn.Module, own: Mapping[str, torch.Tensor], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """New random parameters of the size of its ``own``, so that nothing passes by a special initialisation."""
    for name, p in model.named_parameters():
        spread = float(own[name].std()) if p.numel() > 1 else 0.0
        spread = spread if spread > 1e-3 else 0.5
        new = spread * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.copy_(new.abs() if bool((own[name] > 0).all()) else new)  # a variance or a temperature has no other sign
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx] = 0  # it has no gradient
    return tensors(model)


def _double(x: Any) -> Any:
    return x.detach().double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def _given(model: nn.Module, feedback: Mapping[str, Claim] | None) -> Callable[[str], Potential] | None:
    if feedback is None:
        return None
    weights = {name: p.detach() for name, p in model.named_parameters()}
    potentials: dict[str, Potential] = {}
    for name, B in feedback.items():
        claimed = B(weights[name]) if callable(B) and name in weights else B
        if not isinstance(claimed, torch.Tensor) or name not in weights or weights[name].shape != claimed.shape:
            got = tuple(claimed.shape) if isinstance(claimed, torch.Tensor) else repr(claimed)
            raise SettingError(
                f"lawcheck: feedback[{name!r}] has shape {got}; expected the dotted name of a parameter and its shape, "
                f"one of {', '.join(f'{n} {tuple(w.shape)}' for n, w in weights.items())}"
            )
        if callable(B):
            potentials[name] = Potential(_Claimed(B), dict)
        else:
            potentials[name] = Potential(FeedbackAlignment(), partial(dict, B=claimed.detach().double()))
    return lambda name: potentials.get(name, SQUARE)


class _Claimed(Rule):
    """A B that somebody says follows the weight."""

    name: ClassVar[str] = "claimed"

    def __init__(self, claim: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._claim = claim

    def init(self, weight: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {}

    def feedback(self, weight: Array, state: State) -> Array:
        return self._claim(weight)

    def potential(self, weight: Array, state: State) -> Array | None:
        return None
