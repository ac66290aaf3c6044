import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lawful.errors import SettingError
from lawful.experiments.spec import make_spec, parse_assignments, show_value
from tiny_paper import PAPER, TinySettings


def test_values_take_the_declared_types() -> None:
    given = ["n=12", "lr=1e-3", "widths=4, 5,6", "activation=relu", "bias=true", "scale=none"]
    values = parse_assignments(TinySettings, given)
    assert values == {"n": 12, "lr": 1e-3, "widths": (4, 5, 6), "activation": "relu", "bias": True, "scale": None}
    assert type(parse_assignments(TinySettings, ["lr=1"])["lr"]) is float
    assert parse_assignments(TinySettings, ["scale=2"])["scale"] == 2.0


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("m=3", "unknown setting 'm'"),
        ("n", "expected key=value"),
        ("n=3.5", "setting n: expected int; got '3.5'"),
        ("n=", "setting n: expected int; got ''"),
        ("lr=fast", "setting lr: expected float"),
        ("lr=nan", "setting lr: expected float"),
        ("lr=inf", "setting lr: expected float"),
        ("bias=1", "setting bias: expected bool"),
        ("widths=3,x", "setting widths: expected int,int,…"),
        ("activation=tanh", r"setting activation: expected linear\|relu; got 'tanh'"),
        ("scale=big", r"setting scale: expected float\|none"),
        ("n=0", "expected n >= 1; got 0"),
    ],
)
def test_wrong_settings_name_every_key_and_type(assignment: str, expected: str) -> None:
    with pytest.raises(SettingError, match=expected) as caught:
        make_spec(PAPER, [assignment])
    message = str(caught.value)
    assert "\n" not in message
    assert all(f"{key}: " in message for key in ("n", "lr", "widths", "activation", "bias", "scale"))


def test_a_setting_given_twice_is_refused() -> None:
    with pytest.raises(SettingError, match="given twice"):
        make_spec(PAPER, ["n=3", "n=4"])


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_have_a_range(seed: int) -> None:
    with pytest.raises(SettingError, match="expected a seed"):
        make_spec(PAPER, seed=seed)


def test_set_wins_over_quick() -> None:
    assert make_spec(PAPER, quick=True).settings.steps == 5
    assert make_spec(PAPER, ["steps=7"], quick=True).settings.steps == 7


def test_the_digest_is_of_the_canonical_json() -> None:
    spec = make_spec(PAPER, ["n=3"], seed=4)
    assert spec.digest == hashlib.sha256(spec.json.encode()).hexdigest()
    data = json.loads(spec.json)
    assert data["seed"] == 4 and data["settings"]["n"] == 3
    assert spec.json == json.dumps(data, indent=2, sort_keys=True) + "\n"
    assert spec.digest == make_spec(PAPER, ["lr=0.1", "n=3"], seed=4).digest
    assert spec.digest != make_spec(PAPER, ["n=3"], seed=5).digest


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(), st.lists(st.integers(), min_size=1))
def test_shown_values_parse_back(lr: float, n: int, widths: list[int]) -> None:
    shown = [f"lr={show_value(lr)}", f"n={show_value(n)}", f"widths={show_value(tuple(widths))}"]
    assert parse_assignments(TinySettings, shown) == {"lr": lr, "n": n, "widths": tuple(widths)}
