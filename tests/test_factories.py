"""``module:factory`` gives the user's model, or one line that says what is wrong; every verb reads it alike."""

import re

import pytest
from torch import nn
from typer.testing import CliRunner

from lawful.cli.app import app
from lawful.errors import SettingError
from lawful.factories import made_by

SOURCE = """
from torch import nn

number = 3

def tiny(bias=True, *rest, **options):
    return nn.Sequential(nn.Linear(2, 3, bias=bias), nn.ReLU(), nn.Linear(3, 1))

def sized(inputs, outputs, *, bias, depth=1):
    return nn.Linear(inputs, outputs, bias=bias)

def text():
    return "no model"

def broken():
    return 1 / 0
"""

WRONG = {
    "no_colon": ("own_models", "expected module:factory"),
    "no_name": ("own_models:", "expected module:factory"),
    "no_module": ("nowhere_at_all:tiny", "No module named 'nowhere_at_all'"),
    "no_package": ("nowhere_at_all.deep:tiny", "No module named 'nowhere_at_all'"),
    "inner": ("own_inner:tiny", "No module named 'nowhere_at_all', which own_inner imports"),
    "syntax": ("own_syntax:tiny", "importing own_syntax raised SyntaxError"),
    "fails": ("own_failing:tiny", r"importing own_failing raised RuntimeError: no GPU \(.*own_failing.py, line 2\)"),
    "attribute": ("own_models:missing", "module 'own_models' has no attribute 'missing'"),
    "value": ("own_models:number", "number is a int; expected a function without arguments"),
    "arguments": ("own_models:sized", "sized is called without arguments, but needs inputs, outputs, bias; write"),
    "class": ("torch.nn:Linear", "needs in_features, out_features"),
    "raises": ("own_models:broken", r"broken\(\) raised ZeroDivisionError: .* \(.*own_models.py, line 16\)"),
}


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "own_inner.py").write_text("import nowhere_at_all\n", encoding="utf-8")
    (tmp_path / "own_syntax.py").write_text("def tiny(:\n", encoding="utf-8")
    (tmp_path / "own_failing.py").write_text("\nraise RuntimeError('no GPU')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_the_model_is_made():
    assert len(made_by("own_models:tiny", "--module", nn.Module, "an nn.Module")) == 3


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_and_the_cause_kept(name):
    text, words = WRONG[name]
    with pytest.raises(SettingError, match=f"^--module.*{words}") as caught:
        made_by(text, "--module", nn.Module, "an nn.Module")
    if "raised" in words or "No module" in words:
        assert caught.value.__cause__ is not None


def test_what_is_no_model_is_named():
    with pytest.raises(SettingError, match=r"expected text\(\) to return an nn.Module; got str"):
        made_by("own_models:text", "--module", nn.Module, "an nn.Module")


@pytest.mark.parametrize("verb", [("find", "--module"), ("check",), ("train", "--out", "unused", "--model")])
@pytest.mark.parametrize("name", [*(n for n in WRONG if n != "no_colon"), "text"])
def test_every_verb_says_it_in_one_line(verb, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, words = {**WRONG, "text": ("own_models:text", "got .*str")}[name]
    result = CliRunner().invoke(app, [*verb, text])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert re.search(words, result.stderr)
