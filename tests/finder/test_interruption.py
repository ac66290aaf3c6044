"""Ctrl-C at any phase keeps what was proved: as a count, as a certificate, on the command line."""

import pytest
from typer.testing import CliRunner

from lawful import find_laws
from lawful.cli import find as verb
from lawful.cli.app import app
from lawful.finder.circuits.networks import NETWORKS
from lawful.finder.circuits.verify import verify_circuit_certificate
from lawful.finder.verify import verify_certificate


def interrupt_at(word, times):
    """A progress that is interrupted at the ``times``-th text with this word."""
    seen = []

    def progress(fraction, text):
        seen.append(word in text)
        if sum(seen) == times and seen[-1]:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(("word", "times", "least"), [("proving", 1, 0), ("proving", 2, 40), ("brackets", 1, 60)])
def test_plain_networks_keep_the_laws_proved(word, times, least):
    whole = find_laws([4, 7, 6, 3], rule="fa", activation="linear", bias=True)
    found = find_laws([4, 7, 6, 3], rule="fa", activation="linear", bias=True, progress=interrupt_at(word, times))
    assert found.interrupted and not found.certified
    assert least <= found.count <= whole.count <= found.bound
    assert [law.name for law in found.laws] == [law.name for law in whole.laws][: found.count]
    assert all(check.ok for check in verify_certificate(found.certificate))


@pytest.mark.parametrize(("word", "times", "least"), [("expanding", 1, 0), ("expanding", 6, 4), ("brackets", 1, 10)])
def test_circuits_keep_the_laws_proved(word, times, least):
    found = find_laws(NETWORKS["attention-bias"](), rule="fa", progress=interrupt_at(word, times))
    assert found.interrupted and least <= found.count <= 10 <= found.bound
    assert all(check.ok for check in verify_circuit_certificate(found.certificate))


def test_an_interrupted_rank_starts_no_search():
    asked = []
    stop = interrupt_at("brackets", 1)

    def progress(fraction, text):
        asked.append(text)
        stop(fraction, text)

    assert find_laws([2, 2, 1], rule="kp", activation="square", progress=progress).interrupted
    assert "brackets" in asked[-1]


@pytest.mark.parametrize(("words", "word", "times"), [(["3", "4", "4", "3", "-a", "linear"], "brackets", 1),
                                                      (["--network", "attention-bias"], "expanding", 3)])  # fmt: skip
def test_the_command_line_prints_and_saves_what_is_known(words, word, times, tmp_path, monkeypatch):
    moved, stop = verb._bar.__call__, interrupt_at(word, times)

    def call(self, fraction, text):
        moved(self, fraction, text)
        stop(fraction, text)

    monkeypatch.setattr(verb._bar, "__call__", call)
    path = tmp_path / "laws.json"
    result = CliRunner().invoke(app, ["find", *words, "--out", str(path)])
    assert result.exit_code == 130
    assert f"interrupted while {word}" in result.output and "at least" in result.output
    monkeypatch.undo()
    assert CliRunner().invoke(app, ["find", "--verify", str(path)]).exit_code == 0
    monkeypatch.setattr(verb._bar, "__call__", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    result = CliRunner().invoke(app, ["find", "--verify", str(path)])
    assert result.exit_code == 130 and result.stderr == "interrupted while preparing; there is nothing to keep yet\n"
