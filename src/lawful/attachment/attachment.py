"""``attach`` puts a rule on a model in place, and the attachment of rules that send errors layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, final

import torch
from torch import nn

from lawful.attachment.base import Attachment as Attachment
from lawful.attachment.base import attachment_of as attachment_of
from lawful.attachment.coverage import Site, check_patterns, choose, survey
from lawful.attachment.direct import DirectAttachment
from lawful.attachment.swap import FeedbackLeaf, swap, unswap
from lawful.errors import CoverageError
from lawful.rules.backprop import Backprop
from lawful.rules.base import Rule, generator_for
from lawful.rules.direct_base import DirectRule


def attach(model: nn.Module, rule: Rule | DirectRule | Mapping[str, Rule], *, strict: bool = True) -> Attachment:
    """Train ``model`` with ``rule`` from now on: δ_{i-1} = (δ_i B_i) ⊙ σ'(h_{i-1}). In place; the code stays unedited.

    A direct rule teaches every block from the output error e: δ_i = (e D_i) ⊙ σ'(h_i); it stands alone, in no mapping.

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
    if isinstance(rule, DirectRule):
        return DirectAttachment(model, rule, strict=strict)
    return LayerAttachment(model, rule, strict=strict)


@final
class LayerAttachment(Attachment):
    """Rules that send the error layer by layer: δ_{i-1} = (δ_i B_i) ⊙ σ'(h_{i-1})."""

    rules: dict[str, Rule]

    def __init__(self, model: nn.Module, rule: Rule | Mapping[str, Rule], *, strict: bool) -> None:
        super().__init__(model)
        found = survey(model)
        check_patterns(rule, found.sites)
        chosen = {site.name: (site, choose(rule, site)) for site in found.sites}
        uncovered = dict(found.uncovered)
        uncovered |= {n: "no pattern matches it: add '*': Backprop()" for n, (_, r) in chosen.items() if r is None}
        if uncovered and strict:
            lines = "; ".join(f"{name}: {why}" for name, why in uncovered.items())
            raise CoverageError(f"errors would travel through weights that no rule replaces (strict=True). {lines}")
        self.rules = {n: r.bind(n) for n, (_, r) in chosen.items() if r is not None}
        self.coverage = {n: f"fed back by {r!r}" for n, r in self.rules.items()}
        self.coverage |= dict(found.reasons) | {n: f"NOT COVERED: {why}" for n, why in uncovered.items()}
        self._leaves: dict[str, tuple[nn.Module, str]] = {}
        self._swap([site for site, r in chosen.values() if r is not None])
        self._enter()

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

    def remove(self) -> None:
        """Restore backpropagation bitwise; parameters, and so optimizer states, are untouched."""
        for module in dict.fromkeys(module for module, _ in self._leaves.values()):
            if isinstance(module, FeedbackLeaf):
                unswap(module)
        self._leave()

    def _act(self) -> None:
        for name, rule in self.rules.items():
            module, weight = self._leaves[name]
            rule.project(getattr(module, weight))
            rule.after_step(getattr(module, weight), self.state(name))

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            AttachmentError: the saved rules or weights are not this attachment's; nothing has been changed.
        """
        self._check_fingerprint(saved)
        for name in self.rules:
            for key, tensor in self.state(name).items():
                tensor.copy_(saved["state"][f"{name}.{key}"])
        self.steps = int(saved["steps"])

    def _entries(self) -> dict[str, Any]:
        return {n: [repr(r), list(getattr(*self._leaves[n]).shape)] for n, r in self.rules.items()}

    def _learners(self) -> Iterator[tuple[Rule, nn.Parameter]]:
        return ((rule, getattr(*self._leaves[name])) for name, rule in self.rules.items() if rule.learns)


def _initial_state(rule: Rule, site: Site) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return rule.init(getattr(site.module, site.weight), generator_for(rule.seed, site.name))
