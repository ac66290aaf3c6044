"""The set-up script against a stand-in for Python, so that everything that can go wrong does so in milliseconds."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = "bash dirname sha256sum cut mkdir cat rm cp chmod tee tail grep uname sleep head printf".split()
FAKE_PYTHON = r"""#!/usr/bin/env bash
case "$*" in
    --version) echo "Python ${FAKE_VERSION:-3.12.1}" ;;
    *version_info*) [[ ${FAKE_VERSION:-3.12.1} != 3.9* ]] ;;
    *ensurepip*) [ -z "${FAKE_NO_VENV:-}" ] ;;
    "-m venv "*)
        echo venv >> "$FAKE_LOG"
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        printf '#!/usr/bin/env bash\necho "lawful $*"\n' > "$3/bin/lawful"
        chmod +x "$3/bin/lawful" ;;
    "-m pip install"*)
        echo "$*" >> "$FAKE_LOG"
        echo "Collecting torch (from lawful)"
        sleep "${FAKE_PAUSE:-0}"
        [ -z "${FAKE_PIP_ERROR:-}" ] || { echo "ERROR: $FAKE_PIP_ERROR"; exit 1; } ;;
    "-m pytest"*) echo "$*" ;;
    *) echo "python $*" >> "$FAKE_LOG.rest" ;;
esac
"""


class Clone:
    """A clone of the repository whose PATH holds the fake Python and nothing else that could run one."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a clone"
        self.root.mkdir()
        shutil.copy(ROOT / "run", self.root)
        shutil.copy(ROOT / "pyproject.toml", self.root)
        self.tools = folder / "bin"
        self.tools.mkdir()
        for tool in TOOLS:
            (self.tools / tool).symlink_to(str(shutil.which(tool)))
        self.env_tool()
        self.log = folder / "log"
        python = self.tools / "python3"
        python.write_text(FAKE_PYTHON)
        python.chmod(0o755)

    def env_tool(self) -> None:
        (self.tools / "env").symlink_to(str(shutil.which("env")))

    def start(self, *args: str, **fake: str) -> subprocess.Popen[str]:
        environment = {"PATH": str(self.tools), "FAKE_LOG": str(self.log), "HOME": str(self.root), **fake}
        return subprocess.Popen(
            [self.root / "run", *args],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *args: str, **fake: str) -> tuple[int, str, str]:
        process = self.start(*args, **fake)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    @property
    def steps(self) -> list[str]:
        """What was made and installed, in order."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def leftovers(self) -> list[Path]:
        return [path for path in [self.root / ".venv.lock"] if path.exists()]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    if sys.platform == "win32":
        pytest.skip("run is a bash script")
    return Clone(tmp_path)


def test_the_first_run_sets_up_and_the_second_only_starts(clone: Clone) -> None:
    code, out, err = clone.run()
    assert (code, out) == (0, "lawful reproduce\n")
    assert "making .venv with Python 3.12.1" in err and "installing lawful" in err and "Collecting torch" in err
    assert clone.steps[0] == "venv" and clone.steps[1].endswith(f"--editable {clone.root}")
    assert clone.run("find", "--help") == (0, "lawful find --help\n", "")
    assert len(clone.steps) == 2 and clone.leftovers() == []


def test_test_upgrades_the_set_up_and_serves_both(clone: Clone) -> None:
    clone.run()
    code, out, _ = clone.run("test", "-k", "law")
    assert (code, out) == (0, "-m pytest -n 2 -k law\n")
    assert len(clone.steps) == 3 and clone.steps[2].endswith("[test]")
    assert clone.run() == (0, "lawful reproduce\n", "")
    assert clone.run("test") == (0, "-m pytest -n 2\n", "")
    assert len(clone.steps) == 3


def test_a_changed_pyproject_installs_again_without_a_new_venv(clone: Clone) -> None:
    clone.run()
    with (clone.root / "pyproject.toml").open("a") as file:
        file.write("\n# changed\n")
    assert clone.run()[0] == 0
    assert [step == "venv" for step in clone.steps] == [True, False, False]


@pytest.mark.parametrize(
    ("fake", "expected"),
    [
        ({"FAKE_VERSION": "3.9.2"}, "needs Python 3.11 or newer; found python3 (Python 3.9.2)"),
        ({"PYTHON": "/nowhere/python3.12"}, "needs Python 3.11 or newer; found no Python"),
        ({"FAKE_NO_VENV": "1"}, "has no venv module; on Debian and Ubuntu: sudo apt install python3-venv"),
        ({"FAKE_PIP_ERROR": "[Errno 28] No space left on device"}, "the disk is full"),
        ({"FAKE_PIP_ERROR": "Connection timed out"}, "check the network"),
        ({"FAKE_PIP_ERROR": "No matching distribution"}, "pip could not install lawful"),
    ],
)
def test_what_goes_wrong_is_said_in_a_line_and_the_next_run_recovers(
    clone: Clone, fake: dict[str, str], expected: str
) -> None:
    code, out, err = clone.run(**fake)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ") and expected in err.splitlines()[-1]
    assert clone.leftovers() == []
    assert clone.run()[:2] == (0, "lawful reproduce\n")


def test_no_python_at_all(clone: Clone) -> None:
    (clone.tools / "python3").unlink()
    code, _, err = clone.run()
    assert code == 2 and "found no Python" in err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_install_starts_anew(clone: Clone, how: signal.Signals) -> None:
    process = clone.start(FAKE_PAUSE="20")
    wait_until(lambda: len(clone.steps) == 2)
    os.killpg(process.pid, how)
    _, err = process.communicate(timeout=30)
    if how == signal.SIGINT:
        assert process.returncode == 130 and "interrupted; run ./run again" in err
        assert clone.leftovers() == []
    code, out, err = clone.run()
    assert (code, out) == (0, "lawful reproduce\n")
    assert "unfinished or broken" in err
    assert [step == "venv" for step in clone.steps] == [True, False, True, False]


@pytest.mark.parametrize("damage", ["python", "lawful"])
def test_a_broken_venv_is_mended(clone: Clone, damage: str) -> None:
    clone.run()
    (clone.root / ".venv" / "bin" / damage).unlink()
    if damage == "lawful":
        # A real pip writes the script again; the stand-in's is written with the venv.
        shutil.rmtree(clone.root / ".venv" / "bin")
    assert clone.run()[:2] == (0, "lawful reproduce\n")


def test_a_moved_clone_is_set_up_anew(clone: Clone) -> None:
    clone.run()
    clone.root = clone.root.rename(clone.root.parent / "moved")
    assert clone.run()[:2] == (0, "lawful reproduce\n")
    assert clone.steps.count("venv") == 2


def test_a_venv_of_the_users_own_is_kept(clone: Clone) -> None:
    (clone.root / ".venv" / "bin").mkdir(parents=True)
    (clone.root / ".venv" / "mine").touch()
    shutil.copy(clone.tools / "python3", clone.root / ".venv" / "bin" / "python")
    shutil.copy(shutil.which("true") or "", clone.root / ".venv" / "bin" / "lawful")
    assert clone.run()[0] == 0
    assert (clone.root / ".venv" / "mine").exists() and "venv" not in clone.steps


def test_two_at_once_set_up_once(clone: Clone) -> None:
    first = clone.start(FAKE_PAUSE="2")
    wait_until(lambda: len(clone.steps) == 2)
    code, out, err = clone.run()
    assert (code, out) == (0, "lawful reproduce\n")
    assert "another ./run" in err
    assert first.communicate(timeout=30)[0] == "lawful reproduce\n"
    assert len(clone.steps) == 2


def wait_until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
