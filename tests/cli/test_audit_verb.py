"""``lawful audit``: a report like that of reproduce, and errors in one line."""

import json

import pytest
from typer.testing import CliRunner

from lawful.cli.app import app


def invoke(*arguments):
    return CliRunner().invoke(app, ["audit", *arguments])


def test_it_answers_first_and_writes_a_report(tmp_path):
    out = tmp_path / "run"
    arguments = ["--examples", "96", "--epochs", "2", "--rule", "fa:init=aligned", "--optimizer", "sgd:weight_decay=2"]
    result = invoke(*arguments, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "Weight decay broke conservation, from step 1 on" in result.output
    assert "5 checks: 5 pass, 0 fail" in result.output and "claim" not in result.output
    page = (out / "report.html").read_text(encoding="utf-8")
    words = ["Conservation audit", "What broke conservation, and when", "Law by law", "Are the books right?", "passes"]
    assert all(word in page for word in [*words, "lawful audit --model mlp", "lawful reproduce kunin2021"])
    assert not any(word in page for word in ("Reproduced", "The paper says", "Every claim", "correct the paper"))
    assert sorted(path.stem for path in (out / "figures").glob("*.svg")) == [
        "audit-alignment",
        "audit-budget",
        "audit-guarantee",
        "audit-laws",
        "audit-moved",
    ]
    claims = json.loads((out / "claims.json").read_text(encoding="utf-8"))
    ids = {claim["id"] for claim in claims}
    assert ids == {"audit.rule", "audit.books", "audit.form", "audit.guarantee.0", "audit.guarantee.1"}
    assert not list(out.rglob("unfinished-*")), "what an interrupted audit goes on from is gone with it"


def test_an_optimiser_without_a_form_is_named(tmp_path):
    arguments = [
        "--examples",
        "64",
        "--epochs",
        "1",
        "--optimizer",
        "adam",
        "--lr",
        "0.01",
        "--out",
        str(tmp_path / "a"),
    ]
    result = invoke(*arguments)
    assert result.exit_code == 0 and "Preconditioning broke conservation" in result.output
    assert "There is no closed form for adam" in (tmp_path / "a" / "report.html").read_text(encoding="utf-8")


def test_nothing_was_trained(tmp_path):
    result = invoke("--epochs", "0", "--examples", "64", "--out", str(tmp_path / "a"))
    assert result.exit_code == 0 and "nothing has moved" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "nonsense"], "no rule is called 'nonsense'"),
        (["--data", "nonsense"], "data must be one of"),
        (["--model", "nonsense"], "nonsense"),
        (["--optimizer", "nonsense"], "optimizer must be one of"),
        (["--lr", "-1"], "lr must be a positive number; got -1"),
        (["--lr", "1e200", "--examples", "64", "--epochs", "5"], "lower the learning rate"),
        (["--epochs", "-1"], "epochs must be an integer >= 0; got -1"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_2(arguments, message, tmp_path):
    result = invoke(*arguments, "--out", str(tmp_path / "run"))
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
