from pathlib import Path

import pytest

from lawful.errors import DivergenceError, SettingError
from lawful.experiments.paper import Paper
from lawful.experiments.run import Run, SilentWatcher, StageError, run_paper
from lawful.experiments.spec import make_spec
from tiny_paper import PAPER


class Record(SilentWatcher):
    """Which stages were measured, and which were found."""

    def __init__(self) -> None:
        self.events: dict[str, str] = {}
        self.fractions: list[float] = []

    def progressed(self, stage: str, fraction: float, text: str) -> None:
        self.fractions.append(fraction)

    def finished(self, stage: str, seconds: float, *, resumed: bool) -> None:
        self.events[stage] = "found" if resumed else "measured"


def measure(root: Path, *assignments: str, jobs: int = 2, seed: int = 0, paper: Paper = PAPER) -> tuple[Run, Record]:
    record = Record()
    return run_paper(paper, make_spec(paper, assignments, seed=seed), root, jobs=jobs, watcher=record), record


def test_claims_are_byte_identical_whatever_the_number_of_workers(tmp_path: Path) -> None:
    run, record = measure(tmp_path / "a", jobs=1)
    measure(tmp_path / "b", jobs=2)
    measure(tmp_path / "c", seed=1)
    a, b, c = ((tmp_path / name / "claims.json").read_bytes() for name in "abc")
    assert a == b != c
    assert [claim.id for claim in run.claims] == ["decay.closed", "decay.small", "noise.mean", "noise.corrected"]
    assert run.ok and record.events == {"decay": "measured", "noise": "measured"}
    assert record.fractions and all(0 <= fraction <= 1 for fraction in record.fractions)


def test_only_a_damaged_stage_is_measured_again(tmp_path: Path) -> None:
    measure(tmp_path)
    before = (tmp_path / "claims.json").read_bytes()
    (tmp_path / "stages" / "noise" / "trajectories.npz").write_bytes(b"")
    _, record = measure(tmp_path)
    assert record.events == {"decay": "found", "noise": "measured"}
    assert (tmp_path / "claims.json").read_bytes() == before
    _, record = measure(tmp_path)
    assert record.events == {"decay": "found", "noise": "found"}


def test_the_environment_names_versions_and_no_place(tmp_path: Path) -> None:
    measure(tmp_path)
    text = (tmp_path / "environment.json").read_text()
    assert '"torch"' in text and '"python"' in text
    assert str(Path.home()) not in text and "/" not in text


def test_divergence_and_crashes_keep_what_was_measured(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match="choose lr < 2"):
        measure(tmp_path / "lr", "lr=30", jobs=1)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a programming error"):
        measure(tmp_path / "crash", "fault=crash", jobs=1)
    with pytest.raises(StageError, match="killed by signal 9"):
        measure(tmp_path / "kill", "fault=kill", jobs=1)
    for name in ("crash", "kill"):
        assert (tmp_path / name / "stages" / "decay" / "seal.json").exists()
        assert not (tmp_path / name / "claims.json").exists()


def test_ids_name_one_claim(tmp_path: Path) -> None:
    twice = Paper("tiny", "t", "c", PAPER.settings, {"decay": PAPER.stages["decay"], "again": PAPER.stages["decay"]})
    with pytest.raises(SettingError, match="'decay.closed' is used twice"):
        measure(tmp_path, paper=twice)


def test_jobs_are_positive(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="jobs >= 1"):
        measure(tmp_path, jobs=0)
