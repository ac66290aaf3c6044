"""``attach`` puts a rule on a model in place, and the attachment of rules that send errors layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, final

import torch
from torch import nn

from lawful.attachment.base import Attachment as Attachment
from lawful.attachment.base import attachment_of as attachment_of
from lawful.attachment.coverage import Site, check_patterns, choose, survey
from lawful.attachment.direct import DirectAttachment
from lawful.attachment.distributed import give_to_ddp, keep_from_ddp
from lawful.attachment.leaf import FeedbackLeaf, buffer_name
from lawful.attachment.registry import EMBEDDING
from lawful.attachment.reparametrised import read_weight
from lawful.attachment.strays import StrayWatch, stray
from lawful.attachment.swap import swap, unswap
from lawful.errors import CoverageError, SettingError
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
        CoverageError: a weight cannot be covered (under ``strict``); nothing has been changed. The first backward pass
            raises it where an error comes back to a product with a module's weight that did not call the module.
        SettingError: ``rule`` is no rule, a pattern matches nothing, or a B does not have its weight's shape.

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
        uncovered |= {n: _NEEDS_PARAMETER for n, (s, r) in chosen.items() if r is not None and r.learns and s.computed}
        uncovered |= {n: _COMPLEX for n, (s, r) in chosen.items() if not isinstance(r, Backprop) and _is_complex(s)}
        if uncovered and strict:
            lines = "; ".join(f"{name}: {why}" for name, why in uncovered.items())
            raise CoverageError(f"errors would travel through weights that no rule replaces (strict=True). {lines}")
        self.rules = {n: r.bind(n) for n, (_, r) in chosen.items() if r is not None and n not in uncovered}
        self.coverage = {n: f"fed back by {r!r}" for n, r in self.rules.items()}
        self.coverage |= {twin.name: f"tied to {n}" for n in self.rules for twin in found.tied.get(n, ())}
        self.coverage |= found.reasons | {n: f"NOT COVERED: {why}" for n, why in uncovered.items()}
        self._owners = {s.name: (s, *found.tied.get(s.name, ())) for s in found.sites}
        self._swap()
        self._strict = strict
        self._watch_strays({name for name, why in found.reasons.items() if why == EMBEDDING})
        self._enter()

    def _watch_strays(self, embeddings: set[str]) -> None:
        fed_back = {name for name, rule in self.rules.items() if not isinstance(rule, Backprop)}
        twins = {site.name for name in fed_back for site in self._owners[name]}
        every = {site.name for owners in self._owners.values() for site in owners}
        prefixes = {name.rpartition(".")[0] for name in every | embeddings}
        self._strays = StrayWatch(frozenset(twins | embeddings), frozenset(prefixes), self._report_stray)
        self._strays.is_done = not fed_back or "" in prefixes  # the model is one such module
        self._hook = self.model.register_forward_pre_hook(self._strays)

    def _report_stray(self, name: str, where: str) -> None:
        if self._strict:
            raise CoverageError(stray(name, where))
        self.coverage[name] = f"NOT COVERED: {stray(name, where)}"

    def watch_strays(self) -> ExitStack:
        """Look for weights used outside of their modules until the stack is closed, once in the attachment's life.

        Calls of the model are looked at anyway; this is for training that calls parts of it.
        """
        if self._strays.is_done:
            return ExitStack()
        watch = self._strays.watch(self.model)
        self._strays.is_done = True
        return watch

    def _swap(self) -> None:
        sites = {name: owners[0] for name, owners in self._owners.items()}
        rules = {name: self.rules.get(name, Backprop()) for name in sites}
        states = {n: initial_state(rules[n], s) for n, s in sites.items()}  # all may raise before any is swapped
        for name, site in sites.items():
            check_feedback(rules[name], site, states[name])
        fixed = {n for n in sites if is_independent_of_weight(rules[n], sites[n], states[n])}
        leaves: dict[nn.Module, dict[str, str]] = {}
        for name, owners in self._owners.items():
            for site in owners:
                leaves.setdefault(site.module, {})[site.weight] = name
        kinds = {site.module: site.leaf for owners in self._owners.values() for site in owners}
        for module, weights in leaves.items():
            read = {name for child in module.children() for name in leaves.get(child, {}).values()}
            if all(isinstance(rules[name], Backprop) for name in {*weights.values(), *read}):
                continue  # autograd is the rule, also of weights that the module may read past its parts
            swap(
                module,
                kinds[module],
                {weight: rules[name] for weight, name in weights.items()},
                {weight: states[name] for weight, name in weights.items()},
            )
        keep_from_ddp(self.model, (site for n in fixed for site in self._owners[n]))

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """The live rule state of one weight: {"B": …} for feedback alignment, {} for backpropagation."""
        self._check_attached(name)
        first, *twins = self._owners[name]
        if not isinstance(first.module, FeedbackLeaf):
            return {}
        state = first.module.rule_state(first.weight)
        for twin in twins:  # ``.to(…)`` converts each owner's buffers apart
            for key, tensor in state.items():
                setattr(twin.module, buffer_name(twin.weight, key), tensor)
        return state

    def weight(self, name: str) -> torch.Tensor:
        """The weight of this dotted name, as it is now."""
        site = self._owners[name][0]
        return read_weight(site.module, site.weight)

    def feedback_of(self, name: str) -> torch.Tensor:
        """B of one weight, as the backward pass would read it now."""
        weight = self.weight(name).detach()
        whole = getattr(weight, "full_tensor", weight.detach)()  # fully_shard leaves a part here
        return self.rules[name].feedback(whole, self.state(name))

    def remove(self) -> None:
        """Restore backpropagation bitwise; parameters, and so optimizer states, are untouched."""
        for module in dict.fromkeys(site.module for owners in self._owners.values() for site in owners):
            if isinstance(module, FeedbackLeaf):
                unswap(module)
        give_to_ddp(self.model)
        self._hook.remove()
        self._leave()

    def _act(self, is_stepped: Callable[[torch.Tensor], bool]) -> None:
        for name, rule in self.rules.items():
            projects = type(rule).project is not Rule.project
            if (projects or rule.learns) and is_stepped(weight := self.weight(name)):
                if projects:
                    rule.project(weight)
                if rule.learns:
                    rule.after_step(weight, self.state(name))

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
        return {n: [repr(r), list(self.weight(n).shape)] for n, r in self.rules.items()}

    def _learners(self) -> Iterator[tuple[Rule, torch.Tensor]]:
        return ((rule, self.weight(name)) for name, rule in self.rules.items() if rule.learns)


_NEEDS_PARAMETER = (
    "it is computed from other parameters (weight_norm, pruning, …) and the rule learns its feedback from the weight's "
    "steps: remove the reparametrisation, or give this weight a rule with fixed feedback"
)

_COMPLEX = "it is complex, and rules are stated for real weights: give it Backprop(), or split it into two real ones"


def _is_complex(site: Site) -> bool:
    return read_weight(site.module, site.weight).is_complex()


def initial_state(rule: Rule, site: Site, weight: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """The state a rule starts with at one weight (or at another ``weight`` in its place)."""
    with torch.no_grad():
        weight = read_weight(site.module, site.weight).detach() if weight is None else weight
        return rule.init(weight, generator_for(rule.seed, site.name))


def check_feedback(rule: Rule, site: Site, state: dict[str, torch.Tensor]) -> None:
    """Refuse a rule whose B does not have the weight's shape."""
    with torch.no_grad():
        weight = read_weight(site.module, site.weight).detach()
        B = rule.feedback(weight, state)
    if not isinstance(B, torch.Tensor) or B.shape != weight.shape:
        got = tuple(B.shape) if isinstance(B, torch.Tensor) else repr(B)
        raise SettingError(f"{rule!r}: feedback must give B of {site.name}'s shape {tuple(weight.shape)}; got {got}")


def is_independent_of_weight(rule: Rule, site: Site, state: dict[str, torch.Tensor]) -> bool:
    """Whether every process starts with this state even if their weights differ."""
    weight = read_weight(site.module, site.weight)
    another = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(weight)
    other = initial_state(rule, site, another)
    return all(torch.equal(tensor, other[key]) for key, tensor in state.items())
