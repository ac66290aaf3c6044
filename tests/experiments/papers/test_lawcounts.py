"""The paper lawcounts: quick stages, all claims hold, settings are checked."""

import pytest

from lawful.errors import SettingError
from lawful.experiments.paper import SilentProgress
from lawful.experiments.papers import load_paper
from lawful.experiments.papers.lawcounts import LawCountSettings

PAPER = load_paper("lawcounts")


@pytest.mark.parametrize("stage", list(PAPER.stages))
def test_every_claim_holds(stage):
    section = PAPER.stages[stage](LawCountSettings(networks=5), 0, SilentProgress())
    assert section.claims and [claim.id for claim in section.claims if not claim.ok] == []


@pytest.mark.parametrize("wrong", [{"networks": 0}, {"max_width": 1}, {"max_linear_width": 99}])
def test_settings_are_checked(wrong):
    with pytest.raises(SettingError, match=next(iter(wrong))):
        LawCountSettings(**wrong).validate()
