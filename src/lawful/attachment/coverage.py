"""Which weights carry errors, which need no feedback, and which cannot be covered: every parameter gets a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import UninitializedParameter

from lawful.attachment.swap import SWAPS, FeedbackLeaf
from lawful.errors import AttachmentError, SettingError
from lawful.rules.base import Rule

SENDS_NO_ERROR: dict[type[nn.Module], str] = {
    nn.Embedding: "embedding: there is no input error to send",
    nn.EmbeddingBag: "embedding: there is no input error to send",
    nn.modules.batchnorm._NormBase: "normalisation: its elementwise scale carries the error itself",
    nn.LayerNorm: "normalisation: its elementwise scale carries the error itself",
    nn.GroupNorm: "normalisation: its elementwise scale carries the error itself",
    nn.RMSNorm: "normalisation: its elementwise scale carries the error itself",
    nn.PReLU: "activation: its slope is part of σ'",
}
"""Modules whose parameters no rule replaces, and why; they are listed, never raised."""

ADDED = "added after the error has passed: no feedback needed"


@dataclass(frozen=True)
class Site:
    """One weight that a rule replaces: the leaf that owns it, the leaf's dotted name, and the weight's own name."""

    module: nn.Module
    prefix: str
    weight: str

    @property
    def name(self) -> str:
        """The dotted parameter name."""
        return f"{self.prefix}.{self.weight}" if self.prefix else self.weight


@dataclass(frozen=True)
class Survey:
    """What a model's parameters are to a feedback rule."""

    sites: tuple[Site, ...]
    reasons: Mapping[str, str]
    """Parameters that need no feedback, and why."""
    uncovered: Mapping[str, str]
    """Parameters through which an error would travel un-replaced, and what to do."""


def survey(model: nn.Module) -> Survey:
    """Walk the modules once and give every parameter its sentence."""
    sites: list[Site] = []
    reasons: dict[str, str] = {}
    uncovered: dict[str, str] = {}
    for prefix, module in model.named_modules():
        if isinstance(module, FeedbackLeaf):
            raise AttachmentError(f"{prefix or 'the model'} carries a rule already: call attachment.remove() first")
        own = dict(module.named_parameters(recurse=False))
        weights = SWAPS[type(module)][1] if type(module) in SWAPS else ()
        sites += [Site(module, prefix, weight) for weight in weights if weight in own]
        missing = [weight for weight in weights if weight not in module._parameters]
        for name, parameter in own.items():
            dotted = f"{prefix}.{name}" if prefix else name
            if isinstance(parameter, UninitializedParameter):
                raise AttachmentError(f"{dotted} has no shape yet: run one forward pass of the lazy module first")
            if missing:
                sites = [site for site in sites if site.module is not module]
                uncovered[dotted] = (
                    f"{missing[0]} of {prefix or 'the model'} is computed from {', '.join(own)} "
                    "(weight_norm, pruning, …): remove the reparametrisation before attaching"
                )
            elif name in weights:
                continue
            elif weights:
                reasons[dotted] = ADDED
            else:
                why = next((why for kind, why in SENDS_NO_ERROR.items() if isinstance(module, kind)), None)
                if why is not None:
                    reasons[dotted] = why
                else:
                    uncovered[dotted] = (
                        f"module type {type(module).__qualname__} is not known to lawful: "
                        f"use one of {', '.join(kind.__name__ for kind in SWAPS)}, or register the type"
                    )
    return Survey(tuple(sites), reasons, uncovered)


def choose(rule: Rule | Mapping[str, Rule], site: Site) -> Rule | None:
    """The rule for one weight: the first pattern that matches its dotted name or its module's; None if none does."""
    if isinstance(rule, Rule):
        return rule
    return next((r for p, r in rule.items() if fnmatchcase(site.name, p) or fnmatchcase(site.prefix, p)), None)


def check_patterns(rule: Rule | Mapping[str, Rule], sites: tuple[Site, ...]) -> None:
    """Refuse what is no rule, and patterns that match no weight."""
    table = {"*": rule} if isinstance(rule, Rule) else rule
    if not isinstance(table, Mapping):
        raise SettingError(f"expected a lawful Rule or a mapping from name patterns to rules; got {rule!r}")
    for pattern, entry in table.items():
        if not isinstance(entry, Rule):
            raise SettingError(f"expected a lawful Rule for {pattern!r}; got {entry!r} (did you forget the brackets?)")
        if not isinstance(rule, Rule) and not any(
            fnmatchcase(site.name, pattern) or fnmatchcase(site.prefix, pattern) for site in sites
        ):
            raise SettingError(
                f"pattern {pattern!r} matches no weight; the weights are {', '.join(site.name for site in sites)}"
            )
