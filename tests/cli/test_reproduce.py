import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PROGRAM = """
from lawful.experiments.papers import PAPERS
PAPERS["tiny"] = ("A tiny paper", "tiny_paper")
from lawful.cli import main
main()
"""
"""The command line with one more row in its table of papers."""


def start(*args: str, cwd: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(TESTS), "COLUMNS": "120"}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, "reproduce", *args],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def reproduce(*args: str, cwd: Path) -> tuple[int, str, str]:
    process = start(*args, cwd=cwd)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def names(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} - {".lock"}


FINISHED = {
    "spec.json",
    "claims.json",
    "environment.json",
    "report.html",
    "figures/decay.png",
    "figures/decay.svg",
    *(
        f"stages/{stage}/{name}"
        for stage in ("decay", "noise")
        for name in ("section.json", "trajectories.npz", "seal.json")
    ),
}


def test_a_run_writes_everything_and_prints_its_claims(tmp_path: Path) -> None:
    code, out, err = reproduce("tiny", "--out", "run", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert names(tmp_path / "run") == FINISHED
    assert "4 claims: 3 hold, 1 correct the paper, 0 fail" in out
    assert "decay.closed" in out and "report: run/report.html" in out
    claims = json.loads((tmp_path / "run" / "claims.json").read_text())
    assert set(claims[0]) == {"id", "source", "statement", "expected", "tolerance", "measured", "verdict"}

    code, again, err = reproduce("tiny", "--out", "run", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert again.count("measured earlier") == 2


def test_the_default_folder_is_named_by_the_spec(tmp_path: Path) -> None:
    assert reproduce("tiny", "--set", "n=3", cwd=tmp_path)[0] == 0
    assert reproduce("tiny", "--seed", "1", cwd=tmp_path)[0] == 0
    folders = sorted(path.name for path in (tmp_path / "lawful-runs").iterdir())
    assert len(folders) == 2 and all(name.startswith("tiny-") for name in folders)


def test_a_failing_claim_is_exit_code_1(tmp_path: Path) -> None:
    code, out, _ = reproduce("tiny", "--set", "fault=claim", cwd=tmp_path)
    assert code == 1
    assert "fails" in out and "1 fail" in out


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["nobody1900"], "unknown paper 'nobody1900'; expected one of: robertson2023, "),
        (["tiny", "--set", "m=3"], "unknown setting 'm'; allowed settings: n: int = 8"),
        (["tiny", "--set", "n=many"], "setting n: expected int; got 'many'"),
        (["tiny", "--set", "n=0"], "expected n >= 1; got 0"),
        (["tiny", "--seed", "-1"], "expected a seed"),
        (["tiny", "--out", "/dev/null/run"], "choose another --out"),
        (["tiny", "--set", "lr=30"], "lr = 30.0 diverges at step 5; choose lr < 2"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(args: list[str], expected: str, tmp_path: Path) -> None:
    code, _, err = reproduce(*args, cwd=tmp_path)
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    assert expected in err


def test_list_and_settings_name_what_there_is(tmp_path: Path) -> None:
    code, out, _ = reproduce("--list", cwd=tmp_path)
    assert code == 0 and "robertson2023  Robertson & Koyejo 2023" in out
    code, out, _ = reproduce("tiny", "--settings", cwd=tmp_path)
    assert code == 0 and "activation=linear  (linear|relu)" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_leaves_nothing_half_done_and_resumes(how: signal.Signals, tmp_path: Path) -> None:
    args = ("tiny", "--out", "run", "--set", "pause=3")
    process = start(*args, cwd=tmp_path)
    wait_for(tmp_path / "run" / "stages" / "decay" / "seal.json")
    os.killpg(process.pid, how)
    _, err = process.communicate(timeout=30)
    if how == signal.SIGINT:
        assert (process.returncode, err) == (130, "interrupted; run the same command again to resume\n")
    assert names(tmp_path / "run") <= FINISHED - {"claims.json", "report.html"}

    code, out, err = reproduce(*args, cwd=tmp_path)
    assert (code, err) == (0, "")
    assert out.count("measured earlier") == 1
    assert names(tmp_path / "run") == FINISHED

    assert reproduce("tiny", "--out", "whole", "--set", "pause=3", cwd=tmp_path)[0] == 0
    assert (tmp_path / "whole" / "claims.json").read_bytes() == (tmp_path / "run" / "claims.json").read_bytes()


def test_an_interruption_that_reaches_a_worker_alone_ends_nothing(tmp_path: Path) -> None:
    code, _, err = reproduce("tiny", "--out", "run", "--set", "fault=early", cwd=tmp_path)
    assert (code, err) == (0, "")


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    process = start("tiny", "--out", "run", "--set", "pause=20", cwd=tmp_path)
    wait_for(tmp_path / "run" / "stages" / "decay" / "seal.json")
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while group_lives(process.pid):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
