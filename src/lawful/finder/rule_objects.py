"""What a rule object says beyond its name: options that a count must see, and feedback with a structure of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch

from lawful.errors import SettingError
from lawful.finder.architectures import Architecture
from lawful.finder.families import FAMILIES, STRUCTURED
from lawful.finder.fields import B_RANGE
from lawful.rules.base import Rule, generator_for
from lawful.rules.direct_base import DirectRule
from lawful.rules.feedback_alignment import FeedbackAlignment
from lawful.rules.kolen_pollack import KolenPollack
from lawful.rules.low_rank_feedback import LowRankFeedback
from lawful.rules.registry import RULES, parse_rule
from lawful.rules.sign_feedback_alignment import SignFeedbackAlignment
from lawful.rules.sparse_feedback import SparseFeedback
from lawful.rules.uniform_sign_symmetry import UniformSignSymmetry

ADVICE: Final = (
    f"counted are {', '.join(FAMILIES)}, rule objects of {', '.join(STRUCTURED)}, and any constant feedback as "
    "rule='fa' with B=[B_2, …, B_L] (direct: rule='dfa' with B=[D_1, …])"
)

_MOVING: Final = {"wm": "as its B moves on its own", "brsf": "as its B is drawn anew for every batch"}

AnyRule = Rule | DirectRule


def named_or_object(rule: Any) -> str | AnyRule:
    """A name that needs no options, or a rule object, also from a text like ``low-rank-fa:rank=2``.

    Raises:
        SettingError: no rule, or one whose laws cannot be counted.
    """
    if isinstance(rule, str):
        if rule in FAMILIES:
            return rule
        if rule in RULES and rule not in STRUCTURED:
            raise SettingError(f"find_laws: the laws of {rule!r} cannot be counted, {_MOVING[rule]}; {ADVICE}")
        rule = parse_rule(rule)
    if isinstance(rule, type):
        raise SettingError(f"find_laws: rule must be a rule object; got the class, write {rule.__name__}()")
    if not isinstance(rule, AnyRule):
        raise SettingError(f"find_laws: rule must be a rule object or a name; got {rule!r}; {ADVICE}")
    known = rule.name in FAMILIES or rule.name in STRUCTURED
    if not known or _module_of(rule) != RULES[rule.name]:
        why = _MOVING.get(rule.name, "as a rule of your own may do anything")
        raise SettingError(f"find_laws: the laws of {type(rule).__name__} cannot be counted, {why}; {ADVICE}")
    return rule


def refuse_what_would_be_ignored(
    rule: str | AnyRule, generic: bool, geometry: str, *, biased: bool, equal: bool
) -> None:
    """Options of a rule object that a count for generic feedback would not see.

    ``biased``: the network has biases; ``equal``: all layers decay alike.

    Raises:
        SettingError: naming the option and what to do.
    """
    for kind, wrong, what in (*_IGNORED, *(_REPLACED if generic else ())):
        if isinstance(rule, kind) and wrong(rule):
            raise SettingError(f"find_laws: {rule!r}: {what}")
    if not generic and not isinstance(rule, str) and rule.name in STRUCTURED:
        raise SettingError(
            f"find_laws: {rule!r} draws feedback with a structure of its own; pass rule='fa' (or 'dfa') with a B"
        )
    if isinstance(rule, KolenPollack) and geometry == "decay" and not (rule.decay and equal):
        raise SettingError(
            f"find_laws: {rule!r} moves B by itself, without the optimiser's decay; laws under decay are counted for "
            "KolenPollack(decay=λ), all layers alike; rule='kp' counts W and B that decay together"
        )
    if isinstance(rule, KolenPollack) and rule.decay:
        if geometry != "decay":
            raise SettingError("find_laws: KolenPollack with decay has time-dependent laws; pass geometry='decay'")
        if biased:
            raise SettingError("find_laws: KolenPollack does not decay biases, geometry='decay' does; take bias=False")


_GIVE_B: Final = "pass the numbers as B=[B_2, …, B_L] to find_laws to count for them"

_Refusals = tuple[tuple[type, Callable[[Any], bool], str], ...]

_REPLACED: Final[_Refusals] = (
    (FeedbackAlignment, lambda r: r.B is not None, f"the rule brings its own B; {_GIVE_B}"),
    (FeedbackAlignment, lambda r: r.init_name == "orthogonal", f"orthogonal feedback is not generic; {_GIVE_B}"),
    (Rule, lambda r: getattr(r, "scale", None) == 0, f"scale 0 makes B zero; {_GIVE_B}"),
    (DirectRule, lambda r: r.scale == 0, "scale 0 makes every D zero; pass B=[D_1, …] to find_laws"),
)
"""What a given B takes the place of."""

_IGNORED: Final[_Refusals] = (
    (SignFeedbackAlignment, lambda r: r.magnitude == 0, "magnitude 0 sends no errors; take another"),
    (
        UniformSignSymmetry,
        lambda r: r.adaptive,
        "an adaptive scale mean|W| moves with W and leaves no law of a neuron; take adaptive=False",
    ),
    (DirectRule, lambda r: r.taps is not None, "a count teaches every hidden layer; leave taps out"),
    (DirectRule, lambda r: r.output is not None, "a count takes the last layer for the output; leave output out"),
)


def structured_feedback(
    rule: str | AnyRule, arch: Architecture, names: Sequence[str], rng: np.random.Generator, largest: int = B_RANGE
) -> tuple[np.ndarray, ...] | None:
    """B_2 … B_L with the structure of the rule and otherwise generic whole numbers; None for rules without one.

    Args:
        rule: low-rank: products of random factors of that rank; sparse: the zeros that (seed, name) draw; shared
            direct: the first columns of one matrix.
        arch: the network.
        names: dotted names of the weights W_2 … W_L.
        rng: draws the numbers.
        largest: of their sizes.
    """
    if isinstance(rule, str) or rule.name not in STRUCTURED:
        return None
    shapes = [(arch.widths[i + 1], arch.widths[i]) for i in range(1, arch.depth)]
    blocks = [np.zeros((0, 0), dtype=object)]
    if isinstance(rule, LowRankFeedback):
        blocks += [_whole(rng, (m, rule.rank), largest) @ _whole(rng, (rule.rank, n), largest) for m, n in shapes]
    elif isinstance(rule, SparseFeedback):
        for shape, name in zip(shapes, names, strict=True):
            drawn = rule.init(torch.empty(shape, dtype=torch.float64), generator_for(rule.seed, name))["B"]
            blocks.append(_whole(rng, shape, largest) * (drawn.numpy() != 0).astype(int).astype(object))
    else:
        shared = _whole(rng, (arch.widths[-1], max(arch.widths[1:-1], default=1)), largest)
        blocks += [shared[:, :n] for n in arch.widths[1:-1]]
    return tuple(blocks)


def refuse_structure(rule: str | AnyRule, generic: bool) -> None:
    """Where generic feedback is drawn without a structure.

    Raises:
        SettingError: the rule's feedback has one.
    """
    if generic and not isinstance(rule, str) and rule.name in STRUCTURED:
        raise SettingError(
            f"find_laws: the structure of {rule!r} is drawn for plain MLPs only; pass rule='fa' and B by weight name"
        )


def weight_names(source: Any, arch: Architecture) -> list[str]:
    """Dotted names of W_2 … W_L in the module, or in the ``nn.Sequential`` that widths stand for."""
    if isinstance(source, torch.nn.Module):
        linear = [name for name, leaf in source.named_modules() if isinstance(leaf, torch.nn.Linear)]
        return [f"{name}.weight" for name in linear[1:]]
    return [f"{i if arch.sigma.linear else 2 * i}.weight" for i in range(1, arch.depth)]


def _whole(rng: np.random.Generator, shape: tuple[int, ...], largest: int) -> np.ndarray:
    return (rng.integers(1, largest + 1, shape) * rng.choice([-1, 1], shape)).astype(object)


def _module_of(rule: AnyRule) -> str:
    return f"{type(rule).__module__}:{type(rule).__qualname__}"
