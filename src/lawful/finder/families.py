"""How a rule enters the counting: where the feedback weight comes from, and what else moves or is restricted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from lawful.errors import SettingError
from lawful.rules.base import Rule
from lawful.rules.direct_base import DirectRule

Source = Literal["weight", "fixed", "moving", "sign"]
"""B is the weight itself, a constant, part of the state (and moves like W), or constant on an orthant of W."""

Route = Literal["layer", "signs", "direct-error", "direct-target"]
"""Errors travel layer by layer, as signs only, or straight from the output error or the target."""


@dataclass(frozen=True)
class Family:
    """What counting needs to know of a rule.

    Attributes:
        name: the registry's name.
        source: where B comes from.
        route: how the error reaches a hidden layer.
        orthant: the sign of the weights of layers >= 2 is fixed ("any" orthant, or the "positive" one): laws are
            local to it, and only activation patterns realised there count.
        title: the name in tables.
    """

    name: str
    title: str
    source: Source
    route: Route = "layer"
    orthant: Literal["", "any", "positive"] = ""

    @property
    def direct(self) -> bool:
        """True when every hidden layer hears the output alone."""
        return self.route.startswith("direct")


FAMILIES: Final[dict[str, Family]] = {
    family.name: family
    for family in (
        Family("bp", "backpropagation", "weight"),
        Family("fa", "feedback alignment", "fixed"),
        Family("rho-fa", "ρ-aligned feedback alignment", "fixed"),
        Family("usf", "uniform sign symmetry", "sign", orthant="any"),
        Family("frsf", "fixed-magnitude sign symmetry", "sign", orthant="any"),
        Family("kp", "Kolen–Pollack", "moving"),
        Family("sign-fa", "sign feedback alignment", "fixed", route="signs"),
        Family("dfa", "direct feedback alignment", "fixed", route="direct-error"),
        Family("mdfa", "monotone direct feedback alignment", "fixed", route="direct-error", orthant="positive"),
        Family("drtp", "direct random target projection", "fixed", route="direct-target"),
    )
}
"""The rules whose laws can be counted, by registry name."""


STRUCTURED: Final[dict[str, Family]] = {
    family.name: family
    for family in (
        Family("low-rank-fa", "feedback alignment of low rank", "fixed"),
        Family("sparse-fa", "sparse feedback alignment", "fixed"),
        Family("shared-dfa", "direct feedback alignment, one matrix for all", "fixed", route="direct-error"),
    )
}
"""Rules whose constant feedback is not generic: their laws depend on options, and are counted for rule objects."""


def family_of(rule: Rule | DirectRule | str) -> Family:
    """The family of a rule object or registry name.

    Raises:
        SettingError: a rule that counting does not know.
    """
    name = rule if isinstance(rule, str) else rule.name
    known = {**FAMILIES, **STRUCTURED}
    if name not in known:
        raise SettingError(f"find_laws: rule must be one of {', '.join(known)}; got {name!r}")
    return known[name]
