"""``attach`` puts a rule on a model in place; the Attachment says what is covered, holds B, and takes it off again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from lawful.attachment.coverage import Site, check_patterns, choose, survey
from lawful.attachment.swap import FeedbackLeaf, swap, unswap
from lawful.errors import AttachmentError, CoverageError, UnfollowedRuleError
from lawful.rules.backprop import Backprop
from lawful.rules.base import Rule, generator_for

_ATTRIBUTE = "_lawful_attachment"
_LEARNING: WeakSet[Attachment] = WeakSet()


def attach(model: nn.Module, rule: Rule | Mapping[str, Rule], *, strict: bool = True) -> Attachment:
    """Train ``model`` with ``rule`` from now on: δ_{i-1} = (δ_i B_i) ⊙ σ'(h_{i-1}). In place; the code stays unedited.

    Args:
        model: any module. Its forward pass stays bitwise the same.
        rule: one rule for every weight, or a mapping from name patterns ("encoder.*") to rules; the first match wins.
        strict: raise when an error would travel through a weight that no rule replaces; False lists it in
            ``attachment.coverage`` instead.

    Returns:
        The attachment; ``attachment.remove()`` restores backpropagation bitwise.

    Raises:
        AttachmentError: the model carries a rule already, or has lazy parameters.
        CoverageError: a weight cannot be covered (under ``strict``); nothing has been changed.
        SettingError: ``rule`` is no rule, or a pattern matches nothing.

    >>> import torch, lawful
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    >>> attachment = lawful.attach(model, lawful.FeedbackAlignment(seed=1))
    >>> sorted(attachment.feedback)
    ['0.weight', '2.weight']
    """
    return Attachment(model, rule, strict=strict)


def attachment_of(model: nn.Module) -> Attachment:
    """The attachment of a model, also of a copy made by deepcopy or pickle."""
    attachment = model.__dict__.get(_ATTRIBUTE)
    if attachment is None:
        raise AttachmentError("the model carries no rule: call lawful.attach(model, rule) first")
    return attachment


class Attachment:
    """A rule on a model. Made by :func:`attach`; see there.

    Attributes:
        model: the model.
        coverage: every parameter's dotted name, and the rule that feeds it back or why none does.
        rules: dotted weight name -> its rule.
        feedback: dotted weight name -> the live B, for the rules that store one.
        steps: optimizer steps followed so far.
    """

    def __init__(self, model: nn.Module, rule: Rule | Mapping[str, Rule], *, strict: bool) -> None:
        if _ATTRIBUTE in model.__dict__:
            raise AttachmentError("the model carries a rule already: call attachment.remove() before attaching another")
        found = survey(model)
        check_patterns(rule, found.sites)
        chosen = {site.name: (site, choose(rule, site)) for site in found.sites}
        uncovered = dict(found.uncovered)
        uncovered |= {n: "no pattern matches it: add '*': Backprop()" for n, (_, r) in chosen.items() if r is None}
        if uncovered and strict:
            lines = "; ".join(f"{name}: {why}" for name, why in uncovered.items())
            raise CoverageError(f"errors would travel through weights that no rule replaces (strict=True). {lines}")
        self.model = model
        self.rules: dict[str, Rule] = {n: r.bind(n) for n, (_, r) in chosen.items() if r is not None}
        self.coverage: dict[str, str] = {n: f"fed back by {r!r}" for n, r in self.rules.items()}
        self.coverage |= dict(found.reasons) | {n: f"NOT COVERED: {why}" for n, why in uncovered.items()}
        self._leaves: dict[str, tuple[nn.Module, str]] = {}
        self.steps = 0
        self._followed: list[tuple[Any, Any]] = []
        self._swap([site for site, r in chosen.values() if r is not None])
        model.__dict__[_ATTRIBUTE] = self
        self._watch()

    def _swap(self, sites: list[Site]) -> None:
        states = {s.name: _initial_state(self.rules[s.name], s) for s in sites}  # all may raise before any is swapped
        for site in sites:
            self._leaves[site.name] = (site.module, site.weight)
        for module in dict.fromkeys(site.module for site in sites):
            mine = [site for site in sites if site.module is module]
            if all(isinstance(self.rules[site.name], Backprop) for site in mine):
                continue  # autograd is the rule
            swap(module, {s.weight: self.rules[s.name] for s in mine}, {s.weight: states[s.name] for s in mine})

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """The live rule state of one weight: {"B": …} for feedback alignment, {} for backpropagation."""
        module, weight = self._leaves[name]
        return module.rule_state(weight) if isinstance(module, FeedbackLeaf) else {}

    def feedback_of(self, name: str) -> torch.Tensor:
        """B of one weight, as the backward pass would read it now."""
        module, weight = self._leaves[name]
        return self.rules[name].feedback(getattr(module, weight).detach(), self.state(name))

    @property
    def feedback(self) -> Mapping[str, torch.Tensor]:
        """The live B tensors, where a rule stores B; writing into one changes the next backward pass."""
        states = {name: self.state(name) for name in self.rules}
        return {name: state["B"] for name, state in states.items() if "B" in state}

    def remove(self) -> None:
        """Restore backpropagation bitwise; parameters, and so optimizer states, are untouched."""
        for module in dict.fromkeys(module for module, _ in self._leaves.values()):
            if isinstance(module, FeedbackLeaf):
                unswap(module)
        for _, handle in self._followed:
            handle.remove()
        _LEARNING.discard(self)
        del self.model.__dict__[_ATTRIBUTE]

    def follow(self, optimizer: Optimizer) -> Attachment:
        """Let rules whose feedback learns, or who project their weights, act after each step of ``optimizer``.

        Optimizer steps are counted in ``steps``. Returns the attachment itself.
        """
        if all(followed is not optimizer for followed, _ in self._followed):
            self._followed.append((optimizer, optimizer.register_step_post_hook(lambda *_: self._after_step())))
        return self

    @torch.no_grad()
    def _after_step(self) -> None:
        self.steps += 1
        for name, rule in self.rules.items():
            module, weight = self._leaves[name]
            rule.project(getattr(module, weight))
            rule.after_step(getattr(module, weight), self.state(name))

    def state_dict(self) -> dict[str, Any]:
        """What the model's own ``state_dict`` leaves out: rule states by ``<weight>.<key>``, steps, a fingerprint."""
        tensors = {f"{n}.{key}": t.detach().clone() for n in self.rules for key, t in self.state(n).items()}
        return {"state": tensors, "steps": self.steps, "fingerprint": self._fingerprint()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            AttachmentError: the saved rules or weights are not this attachment's; nothing has been changed.
        """
        if saved["fingerprint"] != self._fingerprint():
            raise AttachmentError(
                f"the saved state belongs to other rules or weights: expected {self._fingerprint()}, "
                f"got {saved['fingerprint']}"
            )
        for name in self.rules:
            for key, tensor in self.state(name).items():
                tensor.copy_(saved["state"][f"{name}.{key}"])
        self.steps = int(saved["steps"])

    def _fingerprint(self) -> str:
        entries = {n: [repr(r), list(getattr(*self._leaves[n]).shape)] for n, r in self.rules.items()}
        return json.dumps(entries, sort_keys=True)

    def _watch(self) -> None:
        if any(rule.learns for rule in self.rules.values()):
            _LEARNING.add(self)

    def _parameters(self) -> Iterator[nn.Parameter]:
        return (getattr(*self._leaves[name]) for name, rule in self.rules.items() if rule.learns)

    def __getstate__(self) -> dict[str, Any]:
        """Copies follow no optimizer: theirs is another."""
        return {**self.__dict__, "_followed": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._watch()

    def __repr__(self) -> str:
        return "Attachment(\n" + "".join(f"  {name}: {what}\n" for name, what in self.coverage.items()) + ")"


def _initial_state(rule: Rule, site: Site) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return rule.init(getattr(site.module, site.weight), generator_for(rule.seed, site.name))


def _refuse_unfollowed(optimizer: Optimizer, *_: Any) -> None:
    """After every optimizer step anywhere: a learning rule that this step left behind must not go unnoticed."""
    for attachment in _LEARNING:
        if any(followed is optimizer for followed, _ in attachment._followed):
            continue
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if any(id(p) in stepped for p in attachment._parameters()):
            names = ", ".join(sorted({type(r).__name__ for r in attachment.rules.values() if r.learns}))
            raise UnfollowedRuleError(
                f"{names} learns its feedback, but {type(optimizer).__name__} stepped without it: "
                "call attachment.follow(optimizer) before training"
            )


register_optimizer_step_post_hook(_refuse_unfollowed)
