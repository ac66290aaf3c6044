"""Which weights carry errors, which need no feedback, and which cannot be covered: every parameter gets a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import UninitializedParameter

from lawful.attachment.leaf import FeedbackLeaf
from lawful.attachment.registry import KINDS, Kind, kind_of
from lawful.attachment.registry import SENDS_NO_ERROR as SENDS_NO_ERROR
from lawful.attachment.reparametrised import computed_weights
from lawful.errors import AttachmentError, SettingError
from lawful.rules.base import Rule

_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torchao.quantization", "bitsandbytes.")


@dataclass(frozen=True)
class Site:
    """One weight that a rule replaces: the leaf that owns it, the leaf's dotted name, and the weight's own name."""

    module: nn.Module
    prefix: str
    weight: str
    leaf: type[FeedbackLeaf]
    computed: bool = False
    """Made from other parameters in each forward pass (weight_norm, pruning, …)."""

    @property
    def name(self) -> str:
        """The dotted parameter name."""
        return _dotted(self.prefix, self.weight)


@dataclass
class Survey:
    """What a model's parameters are to a feedback rule."""

    sites: list[Site] = field(default_factory=list)
    tied: dict[str, list[Site]] = field(default_factory=dict)
    """Name of a site -> further places that own the very same parameter, and so share its B."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Parameters that need no feedback, and why."""
    uncovered: dict[str, str] = field(default_factory=dict)
    """Parameters (or modules) through which an error would travel un-replaced, and what to do."""

    def add(self, site: Site) -> None:
        """Take a site up, as a new weight or as one more owner of a known one."""
        parameter = site.module._parameters.get(site.weight)
        first = next(
            (s for s in self.sites if parameter is not None and s.module._parameters.get(s.weight) is parameter), None
        )
        if first is None:
            self.sites.append(site)
        else:
            self.tied.setdefault(first.name, []).append(site)


def survey(model: nn.Module) -> Survey:
    """Walk the modules once and give every parameter its sentence."""
    found = Survey()
    for prefix, module in model.named_modules():
        if isinstance(module, FeedbackLeaf):
            raise AttachmentError(f"{prefix or 'the model'} carries a rule already: call attachment.remove() first")
        for name, parameter in module._parameters.items():
            _check_whole(_dotted(prefix, name), parameter)
        if type(module).__module__.startswith(_QUANTISED):
            found.uncovered[prefix or type(module).__name__] = (
                f"{type(module).__qualname__} is quantised and sends no error: train the module it was made from"
            )
            continue
        _survey_one(found, prefix, module, kind_of(module))
    return found


def _check_whole(dotted: str, parameter: nn.Parameter | None) -> None:
    if isinstance(parameter, UninitializedParameter):
        raise AttachmentError(f"{dotted} has no shape yet: run one forward pass of the lazy module first")
    if type(parameter).__name__ == "DTensor":  # by name: importing torch.distributed.tensor is slow
        raise AttachmentError(f"{dotted} is sharded: call lawful.attach before fully_shard, while weights are whole")


def _survey_one(found: Survey, prefix: str, module: nn.Module, kind: Kind | None) -> None:
    computed = computed_weights(module)
    if kind is not None and kind.leaf is not None:
        for name in computed:
            if kind.carries(name):
                found.add(Site(module, prefix, name, kind.leaf, computed=True))
    parts = {part: name for name, these in computed.items() for part in these}
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        dotted = _dotted(prefix, name)
        if kind is None:
            found.uncovered[dotted] = _unknown(module)
        elif name in parts:
            found.reasons[dotted] = f"part of a reparametrisation: errors meet {_dotted(prefix, parts[name])}"
        elif kind.leaf is not None and kind.carries(name):
            found.add(Site(module, prefix, name, kind.leaf))
        else:
            why = kind.reason(name)
            (found.uncovered if why is None else found.reasons)[dotted] = why or _unknown(module)


def _unknown(module: nn.Module) -> str:
    known = ", ".join(kind.__name__ for kind in KINDS)
    return (
        f"module type {type(module).__qualname__} is not known to lawful with this parameter: use one of {known}, "
        f"or say what it is by lawful.register({type(module).__qualname__}, weights=…, added=…, elementwise=…)"
    )


def _dotted(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def choose(rule: Rule | Mapping[str, Rule], site: Site) -> Rule | None:
    """The rule for one weight: the first pattern that matches its dotted name or its module's; None if none does."""
    if isinstance(rule, Rule):
        return rule
    return next((r for p, r in rule.items() if any(_matches(site, p))), None)


def _matches(site: Site, pattern: str) -> Iterator[bool]:
    yield fnmatchcase(site.name, pattern)
    yield fnmatchcase(site.prefix, pattern)


def check_patterns(rule: Rule | Mapping[str, Rule], sites: list[Site]) -> None:
    """Refuse what is no rule, and patterns that match no weight."""
    table = {"*": rule} if isinstance(rule, Rule) else rule
    if not isinstance(table, Mapping):
        raise SettingError(f"expected a lawful Rule or a mapping from name patterns to rules; got {rule!r}")
    for pattern, entry in table.items():
        if not isinstance(entry, Rule):
            raise SettingError(f"expected a lawful Rule for {pattern!r}; got {entry!r} (did you forget the brackets?)")
        if not isinstance(rule, Rule) and not any(any(_matches(site, pattern)) for site in sites):
            raise SettingError(
                f"pattern {pattern!r} matches no weight; the weights are {', '.join(site.name for site in sites)}"
            )
