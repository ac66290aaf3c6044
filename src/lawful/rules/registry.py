"""Every rule by the name that the command line uses; a rule's module is imported when the rule is made."""

from __future__ import annotations

import ast
import importlib
import inspect
from typing import TYPE_CHECKING, Any, Final

from lawful.errors import SettingError

if TYPE_CHECKING:
    from lawful.rules.base import Rule
    from lawful.rules.direct_base import DirectRule

RULES: Final[dict[str, str]] = {
    "bp": "lawful.rules.backprop:Backprop",
    "fa": "lawful.rules.feedback_alignment:FeedbackAlignment",
    "usf": "lawful.rules.uniform_sign_symmetry:UniformSignSymmetry",
    "frsf": "lawful.rules.fixed_magnitude_sign_symmetry:FixedMagnitudeSignSymmetry",
    "brsf": "lawful.rules.batchwise_magnitude_sign_symmetry:BatchwiseMagnitudeSignSymmetry",
    "kp": "lawful.rules.kolen_pollack:KolenPollack",
    "wm": "lawful.rules.weight_mirror:WeightMirror",
    "rho-fa": "lawful.rules.rho_aligned_feedback:RhoAlignedFeedback",
    "low-rank-fa": "lawful.rules.low_rank_feedback:LowRankFeedback",
    "sparse-fa": "lawful.rules.sparse_feedback:SparseFeedback",
    "sign-fa": "lawful.rules.sign_feedback_alignment:SignFeedbackAlignment",
    "dfa": "lawful.rules.direct_feedback_alignment:DirectFeedbackAlignment",
    "drtp": "lawful.rules.direct_random_target_projection:DirectRandomTargetProjection",
    "mdfa": "lawful.rules.monotone_dfa:MonotoneDFA",
    "shared-dfa": "lawful.rules.shared_projection:SharedProjection",
}
"""Name -> ``module:Class``. A name with a dot, ``my_rules.Halved``, is a class of the user's own."""


def rule_named(name: str, **options: Any) -> Rule | DirectRule:
    """The rule of this name, made with these options: ``rule_named("fa", seed=1)``.

    Raises:
        SettingError: no such name; an option that the rule does not take, of a wrong kind, or missing.
    """
    make = _class_of(name)
    parameters = inspect.signature(make).parameters
    unknown = [option for option in options if option not in parameters]
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in options]
    if unknown or missing:
        wrong = "unknown option " + ", ".join(unknown) if unknown else "missing option " + ", ".join(missing)
        raise SettingError(f"rule {name!r}: {wrong}; its options are: {', '.join(parameters) or 'none'}")
    for option, value in options.items():
        _check_kind(name, parameters[option], value)
    return make(**options)


def _check_kind(name: str, option: inspect.Parameter, value: Any) -> None:
    """Refuse text, and a fraction, where the annotation has no room for it."""
    kind = option.annotation if isinstance(option.annotation, str) else ""
    text = isinstance(value, str) and kind and not any(word in kind for word in ("str", "Any"))
    if text or (kind == "int" and not isinstance(value, int)):
        raise SettingError(f"rule {name!r}: {option.name} must be {kind}; got {value!r}")


def parse_rule(text: str) -> Rule | DirectRule:
    """The rule that a command line names: ``fa``, ``fa:seed=1,init=uniform``, ``my_rules.Halved:seed=3``.

    Values are Python literals where they can be, text otherwise; a list is ``taps=['a','b']``.

    Raises:
        SettingError: as :func:`rule_named`, or an option without "=".
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for item in _split(rest):
        option, equals, value = item.partition("=")
        if not equals:
            raise SettingError(f"rule {text!r}: expected option=value after the colon; got {item!r}")
        options[option.strip()] = _value(value.strip())
    return rule_named(name.strip(), **options)


def _class_of(name: str) -> Any:
    module, _, cls = RULES[name].partition(":") if name in RULES else name.rpartition(".")
    if not module:
        raise SettingError(
            f"no rule is called {name!r}; expected one of {', '.join(RULES)}, or a class of your own as module.Class"
        )
    try:
        return getattr(importlib.import_module(module), cls)
    except (ModuleNotFoundError, AttributeError) as error:
        raise SettingError(f"rule {name!r}: cannot find {cls} in module {module}: {error}") from error


def _split(text: str) -> list[str]:
    """The options of a rule, split at the commas outside brackets."""
    items, depth = [""], 0
    for character in text:
        depth += (character in "[(") - (character in "])")
        if character == "," and not depth:
            items.append("")
        else:
            items[-1] += character
    return [item for item in items if item.strip()]


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
