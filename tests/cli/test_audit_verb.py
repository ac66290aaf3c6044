"""``lawful audit``: a report like that of reproduce, and errors in one line."""

import json

import pytest
from typer.testing import CliRunner

from lawful.cli.app import app


def invoke(*arguments):
    return CliRunner().invoke(app, ["audit", *arguments])


def test_it_writes_a_report_like_that_of_reproduce(tmp_path):
    out = tmp_path / "run"
    arguments = ["--examples", "96", "--epochs", "1", "--optimizer", "sgd:weight_decay=0.1"]
    result = invoke(*arguments, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "What broke conservation, and when" in result.output and "weight decay" in result.output
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "lawful audit --model mlp" in page and "audit-budget" in page
    assert sorted(path.name for path in (out / "figures").glob("*.svg")) == [
        "audit-alignment.svg",
        "audit-budget.svg",
        "audit-laws.svg",
    ]
    claims = json.loads((out / "claims.json").read_text(encoding="utf-8"))
    ids = {claim["id"] for claim in claims}
    assert ids == {"audit.rule", "audit.books", "audit.guarantee.0", "audit.guarantee.1"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "nonsense"], "no rule is called 'nonsense'"),
        (["--epochs", "-1"], "epochs must be an integer >= 0; got -1"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_2(arguments, message, tmp_path):
    result = invoke(*arguments, "--out", str(tmp_path / "run"))
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
