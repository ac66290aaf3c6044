"""The registry: names, options, errors that list what is allowed, and a user's own rule, as docs/rules.md shows it."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import lawful
from lawful.errors import SettingError
from lawful.rules.registry import RULES, parse_rule, rule_named

NEEDS = {"rho-fa": {"rho": 0.5}, "low-rank-fa": {"rank": 2}, "sparse-fa": {"density": 0.1}}


@pytest.mark.parametrize("name", RULES)
def test_every_name_makes_the_rule_that_bears_it(name):
    rule = rule_named(name, **NEEDS.get(name, {}))
    assert rule.name == name
    assert getattr(lawful, type(rule).__name__) is type(rule)


def test_every_rule_file_is_registered():
    folder = Path(lawful.__file__).parent / "rules"
    declaring = {path.stem for path in folder.glob("*.py") if 'name: ClassVar[str] = "' in path.read_text("utf-8")}
    assert declaring == {place.split(":")[0].rsplit(".", 1)[1] for place in RULES.values()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fa", "FeedbackAlignment(seed=0, init='normal')"),
        ("fa:seed=1,init=uniform", "FeedbackAlignment(seed=1, init='uniform')"),
        ("kp: seed=1, decay=1e-3", "KolenPollack(seed=1, decay=0.001)"),
        ("usf:adaptive=True", "UniformSignSymmetry(adaptive=True)"),
        ("rho-fa:rho=0.5", "RhoAlignedFeedback(0.5, seed=0)"),
        ("dfa:taps=['1','3'],output=head", "DirectFeedbackAlignment(seed=0, taps=('1', '3'), output='head')"),
        ("lawful.rules.backprop.Backprop", "Backprop()"),
    ],
)
def test_parse(text, expected):
    assert repr(parse_rule(text)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fb", "expected one of bp, fa, usf, .*shared-dfa"),
        ("fa:sed=1", "unknown option sed; its options are: seed, init, scale, B"),
        ("bp:seed=1", "unknown option seed; its options are: none"),
        ("rho-fa", "missing option rho"),
        ("fa:seed", "expected option=value"),
        ("fa:init=cauchy", "init must be one of"),
        ("fa:seed=one", "seed must be int; got 'one'"),
        ("fa:seed=1.5", "seed must be int; got 1.5"),
        ("kp:decay=much", "decay must be float; got 'much'"),
        ("no_such_module_here.Rule", "cannot find Rule"),
        ("lawful.rules.backprop.Backward", "cannot find Backward"),
    ],
)
def test_errors_say_what_is_allowed(text, message):
    with pytest.raises(SettingError, match=message):
        parse_rule(text)


def test_the_registry_is_light():
    code = "import sys, lawful.rules.registry; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_page_of_rules_runs():
    page = Path(__file__).parents[2] / "docs" / "rules.md"
    failed, tried = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert tried > 0 and failed == 0
    listed = page.read_text("utf-8")
    assert [name for name in RULES if f"`{name}`" not in listed] == []
