import resource
import subprocess
import sys

import pytest
import typer

from lawful.cli.app import _guarded


def python(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=60, check=False)


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    code = (
        "import sys, lawful.cli; print(sorted({'torch', 'numpy', 'scipy', 'matplotlib', 'sympy'} & set(sys.modules)))"
    )
    assert python("-c", code).stdout.strip() == "[]"


def test_help_is_quick_and_shows_how_to_start() -> None:
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = python("-m", "lawful", "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Time on the processor: the promise is about the program, not about what else this machine does.
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0
    assert min(times) <= 0.5
    assert "$ lawful reproduce" in done.stdout and "Exit codes" in done.stdout


def test_version() -> None:
    import lawful

    assert python("-m", "lawful", "--version").stdout == f"lawful {lawful.__version__}\n"


RESUMES = "; run the same command again to resume"


@pytest.mark.parametrize(("verb", "line"), [("find", "interrupted\n"), ("audit", f"interrupted{RESUMES}\n")])
def test_only_what_resumes_says_so(verb: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise KeyboardInterrupt

    command.__name__ = verb
    with pytest.raises(typer.Exit) as left:
        _guarded(command)()
    assert left.value.exit_code == 130 and capsys.readouterr().err == line
