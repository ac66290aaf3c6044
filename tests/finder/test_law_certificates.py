"""A certificate is checked by a second program, and a tampered one is caught."""

import copy
import json

import pytest
from typer.testing import CliRunner

from lawful.cli.app import app
from lawful.errors import SettingError
from lawful.finder.certificate import digest, load_certificate, save_certificate
from lawful.finder.search import find_laws
from lawful.finder.verify import verify_certificate

CASES = [
    {"widths_or_module": (3, 4, 4, 3), "rule": "fa", "activation": "linear"},
    {"widths_or_module": (2, 3, 2, 1), "rule": "usf", "activation": "relu"},
    {"widths_or_module": (2, 3, 2, 2), "rule": "kp", "activation": "linear"},
    {"widths_or_module": (3, 2, 2, 3), "rule": "dfa", "activation": "linear", "bias": True},
    {"widths_or_module": (2, 3, 2, 2), "rule": "sign-fa", "activation": "leaky_relu"},
    {"widths_or_module": (2, 3, 2, 2), "rule": "mdfa", "activation": "relu"},
    {"widths_or_module": (2, 3, 2), "rule": "bp", "activation": "tanh", "output": "softmax"},
    {"widths_or_module": (3, 2, 1), "rule": "fa", "activation": "relu", "inputs": [[1, 2, 3], [3, 1, 0.5]]},
    {"widths_or_module": (2, 2, 2), "rule": "fa", "activation": "linear", "geometry": "decay"},
    {"widths_or_module": (2, 3, 1), "rule": "fa", "activation": "linear", "geometry": "decay", "decay": [1, 2]},
    {"widths_or_module": (2, 3, 1), "rule": "bp", "activation": "linear", "geometry": "momentum"},
    {"widths_or_module": (2, 3, 2, 3, 2), "rule": "usf", "activation": "relu", "seed": 1},
    {"widths_or_module": (2, 3, 3, 2), "rule": "sign-fa", "activation": "linear"},
    {"widths_or_module": (2, 4, 1), "rule": "drtp", "activation": "linear", "bias": True},
    {"widths_or_module": (3, 4, 4, 2), "rule": "low-rank-fa:rank=1", "activation": "linear"},
]


@pytest.mark.parametrize("options", CASES, ids=lambda o: o["rule"] + "-" + o["activation"])
def test_the_second_program_agrees(options):
    content = json.loads(json.dumps(find_laws(**options).certificate))
    assert [check for check in verify_certificate(content) if not check.ok] == []


@pytest.fixture
def content():
    return find_laws((2, 3, 1), rule="fa", activation="linear").certificate


def tampered(content, path, value):
    changed = copy.deepcopy(content)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "caught"),
    [
        (("count",), 8, "independence"),
        (("bound",), 6, "rank"),
        (("certified",), False, "conclusion"),
        (("laws", 0, "polynomial", 0, 0), "5", "proofs"),
        (("points", 0, "rank"), 3, "rank"),
        (("system", "rule"), "bp", "proofs"),
    ],
)
def test_tampering_is_caught_even_with_a_new_digest(content, path, value, caught):
    changed = tampered(content, path, value)
    assert "digest" in [check.what for check in verify_certificate(changed) if not check.ok]
    changed["sha256"] = digest(changed)
    assert caught in [check.what for check in verify_certificate(changed) if not check.ok]


def leaves(value, path=()):
    """Every field, and the first two entries of every list."""
    yield path, value
    for key, part in value.items() if isinstance(value, dict) else enumerate(value[:2] if type(value) is list else []):
        yield from leaves(part, (*path, key))


def alternatives(value):
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, -1, None]
    if isinstance(value, str):
        return [value + "1", "x"]
    if isinstance(value, list):
        return [new for new in ([], [1, 2, 3], None) if new != value]
    return [1] if value is None else [None, {}]


LABELS = {"name", "kind", "formula"}
TRUE_AS_WELL = {"seed", "state", "samples", "given_feedback", "feedback"}
"""Another seed, point or number of samples shows the same, and laws for every B hold for other numbers too."""


@pytest.mark.parametrize(
    "options",
    [
        {"widths_or_module": (2, 3, 1), "rule": "fa", "activation": "linear"},
        {"widths_or_module": (2, 2, 1), "rule": "fa", "activation": "relu", "geometry": "decay", "decay": [1, 2]},
    ],
    ids=["plain", "decay"],
)
def test_every_field_is_checked_or_a_mere_label(options):
    content = json.loads(json.dumps(find_laws(**options).certificate))
    for path, value in leaves(content):
        for new in alternatives(value) if path and path[0] != "sha256" else []:
            changed = tampered(content, path, new)
            changed["sha256"] = digest(changed)
            try:
                stands = all(check.ok for check in verify_certificate(changed))
            except SettingError:
                continue
            if stands:
                named = {key for key in path if isinstance(key, str)}
                assert named & (LABELS | TRUE_AS_WELL), (path, new)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '{"format": 1}', '{"format": "lawful law certificate 1"}']
)
def test_garbage_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    for path in (tmp_path / "c.json", tmp_path, tmp_path / "missing.json"):
        result = CliRunner().invoke(app, ["find", "--verify", str(path)])
        assert result.exit_code == 2 and len(result.output.strip().splitlines()) == 1


def test_truncated_and_binary_files_are_refused(tmp_path, content):
    whole = json.dumps(content)
    for data in (whole[: len(whole) // 2].encode(), bytes(range(256))):
        (tmp_path / "c.json").write_bytes(data)
        result = CliRunner().invoke(app, ["find", "--verify", str(tmp_path / "c.json")])
        assert result.exit_code == 2 and len(result.output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["0", "3"],
        ["2"],
        [],
        ["2", "3", "--activation", "swish"],
        ["2", "3", "1", "--rule", "wm"],
        ["2", "3", "1", "--rule", "low-rank-fa"],
        ["2", "3", "1", "--rule", "no.such.Rule"],
        ["400", "400", "3"],
        ["2", "3", "1", "--decay", "1,x"],
        ["2", "3", "1", "--decay", "1"],
        ["2", "3", "1", "--momentum", "--weight-decay"],
        ["2", "3", "1", "--seed", "-1"],
        ["2", "3", "1", "--degree", "0"],
        ["2", "3", "1", "--inputs", "no-such-file"],
    ],
    ids=" ".join,
)
def test_nonsense_is_one_line_and_exit_code_two(arguments):
    result = CliRunner().invoke(app, ["find", *arguments])
    assert result.exit_code == 2 and len(result.output.strip().splitlines()) == 1


def test_rates_and_options_on_the_command_line():
    run = CliRunner()
    decay = run.invoke(app, ["find", "2", "3", "1", "--decay", "1,2"])
    assert decay.exit_code == 0 and "3 independent laws, and these are all (certified)" in decay.output
    low = run.invoke(app, ["find", "3", "4", "4", "2", "--rule", "low-rank-fa:rank=1", "--activation", "linear"])
    assert low.exit_code == 0 and "29 independent laws, and these are all (certified)" in low.output


def test_broken_files_are_named(tmp_path, content):
    (tmp_path / "no.json").write_text("{")
    with pytest.raises(SettingError, match=r"no\.json"):
        load_certificate(tmp_path / "no.json")
    with pytest.raises(SettingError, match="cannot read"):
        load_certificate(tmp_path / "missing.json")
    del content["laws"]
    with pytest.raises(SettingError, match="incomplete"):
        verify_certificate(content)


def test_command_line(tmp_path):
    run, path = CliRunner(), tmp_path / "laws.json"
    made = run.invoke(app, ["find", "2", "3", "1", "--rule", "fa", "--activation", "linear", "--out", str(path)])
    assert made.exit_code == 0 and "7 independent laws, and these are all (certified)" in made.output
    assert run.invoke(app, ["find", "--verify", str(path)]).exit_code == 0
    path.write_text(path.read_text().replace('"count": 7', '"count": 8'))
    wrong = run.invoke(app, ["find", "--verify", str(path)])
    assert wrong.exit_code == 1 and "does not stand" in wrong.output
    bad = run.invoke(app, ["find", "0", "3"])
    assert bad.exit_code == 2 and len(bad.output.strip().splitlines()) == 1


def test_a_certificate_is_written_whole(tmp_path):
    found = find_laws((2, 2, 1), rule="bp")
    save_certificate(found, tmp_path / "c.json")
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]
    with pytest.raises(SettingError, match="cannot write"):
        save_certificate(found, tmp_path / "nowhere" / "c.json")
