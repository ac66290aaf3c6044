import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lawful.errors import SettingError
from lawful.experiments.claims import Claim, claims_from_json, claims_json

WHERE = ("a.b", "Theorem 1", "A sentence.")
finite = st.floats(allow_nan=False, allow_infinity=False)


@given(finite, finite)
def test_bounds_are_inclusive_and_opposite(measured: float, bound: float) -> None:
    below = Claim.at_most(*WHERE, measured, bound).ok
    above = Claim.at_least(*WHERE, measured, bound).ok
    assert below == (measured <= bound)
    assert above == (measured >= bound)
    assert (below and above) == (measured == bound)


@pytest.mark.parametrize(
    ("measured", "expected", "tolerance", "verdict"),
    [
        (1.01, 1.0, {"rel": 0.02}, "holds"),
        (1.03, 1.0, {"rel": 0.02}, "fails"),
        (-1.01, -1.0, {"rel": 0.02}, "holds"),
        (1e-11, 0.0, {"abs": 1e-10}, "holds"),
        (1e-11, 0.0, {"rel": 1.0}, "fails"),
        (1.03, 1.0, {"rel": 0.02, "abs": 0.05}, "holds"),
        (math.nan, 1.0, {"rel": 0.02}, "fails"),
    ],
)
def test_close(measured: float, expected: float, tolerance: dict[str, float], verdict: str) -> None:
    assert Claim.close(*WHERE, measured, expected, **tolerance).verdict == verdict


def test_nan_fails_every_check() -> None:
    assert not Claim.at_most(*WHERE, math.nan, 1.0).ok
    assert not Claim.at_least(*WHERE, math.nan, 1.0).ok


def test_a_correction_that_fails_is_a_failure() -> None:
    assert Claim.true(*WHERE, True, corrects=True).verdict == "corrects-the-paper"
    assert Claim.true(*WHERE, False, corrects=True).verdict == "fails"


def test_close_needs_a_tolerance() -> None:
    with pytest.raises(SettingError, match="expected a tolerance"):
        Claim.close(*WHERE, 1.0, 1.0)


@pytest.mark.parametrize("id", ["", "Upper.case", "a b", ".a", "a..b"])
def test_ids_are_words_joined_by_dots(id: str) -> None:
    with pytest.raises(SettingError, match="claim's id"):
        Claim.true(id, "Theorem 1", "A sentence.", True)


def test_json_round_trip_and_strictness() -> None:
    claims = [Claim.at_most(*WHERE, math.nan, 1.0), Claim.close("c", "§2", "ε.", 1 / 3, 1 / 3, rel=1e-3)]
    text = claims_json(claims)
    data = json.loads(text, parse_constant=pytest.fail)
    assert [row["measured"] for row in data] == ["nan", 0.333333]
    assert [claim.verdict for claim in claims_from_json(text)] == ["fails", "holds"]
    assert claims_json(claims_from_json(text)) == text
