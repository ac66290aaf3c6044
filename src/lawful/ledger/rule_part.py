"""The name under which −lr·g is booked: the rule's own, unless something else keeps the law from holding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from lawful.conservation.base import Law
from lawful.conservation.combination import Moves
from lawful.ledger.causes import RULE, Split

RATES: Final = "unequal learning rates"
FROZEN: Final = "frozen parameters"
EPS: Final = "eps of a norm"


def renamed(
    booked: dict[str, torch.Tensor], by_law: Sequence[torch.Tensor], laws: Sequence[Law], theta: Moves, split: Split
) -> dict[str, torch.Tensor]:
    """What a step adds by cause, −lr·g under its name: all of it, or what unequal rates do.

    Args:
        booked: cause -> what it adds to every law; changed where laws ask for another name.
        by_law: for each law its drift, then its rates, −lr·g first.
        laws: the laws.
        theta: the weights before the step.
        split: the step.
    """
    names = [_name(law, split) for law in laws]
    others = dict.fromkeys([name for name in names if name != RULE])
    if not others:
        return booked
    booked |= {name: torch.zeros_like(booked[RULE]) for name in others}
    at = 0
    for law, name, own in zip(laws, names, by_law, strict=True):
        first, at = at, at + own.shape[1]
        if name != RULE:
            equal = _at_one_rate(law, theta, split) if name == RATES else torch.zeros_like(own[1])
            booked[name][first:at] = own[1] - equal
            booked[RULE][first:at] = equal
    if not {RULE, RATES} & set(names):
        del booked[RULE]
    return booked


def _at_one_rate(law: Law, theta: Moves, split: Split) -> torch.Tensor:
    """What −lr·g would add to a law if its first parameter's learning rate were that of all."""
    lr, g = split.lrs[law.parameters[0]], split.parts[RULE]
    return law.expand(theta, {}, [{n: lr / split.lrs[n] * g[n] for n in law.parameters if n in g}])[1]


def _name(law: Law, split: Split) -> str:
    """−lr·g keeps a law only at one learning rate on all of its parameters; otherwise it is named."""
    if RULE not in split.parts:
        return RULE
    lrs = [split.lrs.get(name, 0.0) for name in law.parameters]
    if any(lrs) and not all(lrs):  # at the rate 0 a parameter is as good as frozen
        return FROZEN
    if len(set(lrs)) > 1:
        return RATES
    return EPS if law.note else RULE
