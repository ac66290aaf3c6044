"""A circuit's certificate is checked by the transposed program, and a tampered one is caught."""

import copy
import json

import pytest
from typer.testing import CliRunner

from lawful.cli.app import app
from lawful.errors import SettingError
from lawful.finder.certificate import digest
from lawful.finder.circuits.networks import NETWORKS
from lawful.finder.circuits.search import find_circuit_laws
from lawful.finder.circuits.verify import verify_circuit_certificate

CASES = [("conv", "bp"), ("rnn", "kp"), ("residual-wide", "fa"), ("attention-bias", "fa"), ("attention-bias", "usf"),
         ("linear-attention", "kp"), ("layer-norm", "fa"), ("batch-norm-0", "bp"), ("transformer-0", "fa")]  # fmt: skip


@pytest.mark.parametrize(("name", "rule"), CASES)
def test_the_second_program_agrees(name, rule):
    content = json.loads(json.dumps(find_circuit_laws(NETWORKS[name](), rule=rule).certificate))
    assert [check for check in verify_circuit_certificate(content) if not check.ok] == []


@pytest.fixture(scope="module")
def content():
    return json.loads(json.dumps(find_circuit_laws(NETWORKS["attention-bias"](), rule="fa").certificate))


@pytest.mark.parametrize(
    ("path", "value", "caught"),
    [
        (("count",), 11, "independence"),
        (("bound",), 9, "rank"),
        (("certified",), False, "conclusion"),
        (("laws", 3, "polynomial", 0, 0), "5", "laws"),
        (("points", 0, "rank"), 15, "rank"),
        (("points", 0, "rank"), 3, "contents"),
        (("rule",), "bp", "laws"),
        (("circuit", "nodes", 6, "kind"), "Mask", None),
        (("dimension",), 23, "dimension"),
        (("format",), "another", "contents"),
        (("prime",), 7, "contents"),
        (("symbols", 0), "x", "contents"),
        (("circuit", "maps", 0, "weight_at", 0, 1), 1.5, "contents"),
        (("circuit", "nodes", 1, "parents"), [-1], "contents"),
        (("circuit", "nodes", 1, "fed"), 1.5, "contents"),
        (("points", 0, "seed"), -1, "contents"),
        (("points", 0, "state", 0), [], "contents"),
        (("laws", 0, "given_feedback"), None, "contents"),
    ],
)
def test_tampering_is_caught_even_with_a_new_digest(content, path, value, caught):
    changed = copy.deepcopy(content)
    place = changed
    for key in path[:-1]:
        place = place[key]
    assert place[path[-1]] != value
    place[path[-1]] = value
    if caught is None:
        with pytest.raises(SettingError, match="incomplete"):
            verify_circuit_certificate(changed)
        return
    assert "digest" in [check.what for check in verify_circuit_certificate(changed) if not check.ok]
    changed["sha256"] = digest(changed)
    assert caught in [check.what for check in verify_circuit_certificate(changed) if not check.ok]


def test_numbers_too_large_for_the_machine_are_one_line(content):
    changed = copy.deepcopy(content)
    changed["circuit"]["maps"][0]["weight_at"][0][0] = 10**30
    with pytest.raises(SettingError, match="incomplete or of the wrong kind"):
        verify_circuit_certificate({**changed, "sha256": digest(changed)})


def test_command_line(tmp_path, monkeypatch):
    run, path = CliRunner(), tmp_path / "laws.json"
    made = run.invoke(app, ["find", "--network", "attention-bias", "--out", str(path)])
    assert made.exit_code == 0 and "10 independent laws, and these are all (certified)" in made.output
    assert run.invoke(app, ["find", "--verify", str(path)]).exit_code == 0
    path.write_text(path.read_text().replace('"count": 10', '"count": 11'))
    wrong = run.invoke(app, ["find", "--verify", str(path)])
    assert wrong.exit_code == 1 and "does not stand" in wrong.output
    (tmp_path / "tiny_nets.py").write_text(
        "from torch import nn\n\ndef conv():\n    return nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU(), nn.Flatten(), "
        "nn.Linear(6, 1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    made = run.invoke(app, ["find", "--module", "tiny_nets:conv", "--shape", "1,4", "--rule", "kp"])
    assert made.exit_code == 0 and "8 independent laws" in made.output


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--network", "nope"], "expected one of conv"),
        (["2", "3", "--network", "conv"], "or one of --module"),
        (["--network", "conv", "--bias"], "a network has its own"),
        (["--module", "nowhere"], "module:factory"),
        (["--module", "nowhere:at_all"], "nowhere"),
        (["--network", "conv", "--shape", "1,4"], "option of --module"),
        (["2", "3", "--shape", "2"], "option of --module"),
        (["--module", "math:pi"], "without arguments"),
        (["--module", "math:hypot"], "return an nn.Module"),
        (["--module", "builtins:dict"], "return an nn.Module"),
        (["--module", "torch.nn:Identity", "--shape", "1,x"], "whole numbers"),
        (["2", "3", "1", "--out", "no_such_folder/laws.json"], "no folder"),
    ],
)
def test_bad_settings_are_one_line(arguments, part):
    bad = CliRunner().invoke(app, ["find", *arguments])
    assert bad.exit_code == 2 and part in " ".join(bad.output.split()) and len(bad.output.strip().splitlines()) == 1
