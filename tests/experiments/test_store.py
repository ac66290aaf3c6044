import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lawful.experiments import store as store_module
from lawful.experiments.paper import SilentProgress
from lawful.experiments.spec import make_spec
from lawful.experiments.store import StorageError, Store, open_store, write_atomic
from tiny_paper import PAPER, TinySettings, decay

SPEC = make_spec(PAPER)
SECTION = decay(TinySettings(), 0, SilentProgress())


@pytest.fixture
def stored(tmp_path: Path) -> Store:
    with open_store(tmp_path / "run", SPEC) as store:
        store.save("decay", SECTION, seconds=1.5)
    return store


def test_a_section_comes_back_as_it_was(stored: Store) -> None:
    assert stored.seal("decay") is not None
    loaded = stored.load("decay")
    np.testing.assert_array_equal(loaded.arrays["x"], SECTION.arrays["x"])
    assert loaded.claims == SECTION.claims
    [before], [after] = SECTION.figures[0].panels, loaded.figures[0].panels
    assert replace(after, lines=[]) == replace(before, lines=[])
    for a, b in zip(before.lines, after.lines, strict=True):
        assert (a.label, a.style, a.color) == (b.label, b.style, b.color)
        np.testing.assert_array_equal(np.asarray(a.y), np.asarray(b.y))


@pytest.mark.parametrize("name", ["section.json", "trajectories.npz", "seal.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_record_is_no_record(stored: Store, name: str, damage: str) -> None:
    path = stored.stage_dir("decay") / name
    content = path.read_bytes()
    if damage == "delete":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert stored.seal("decay") is None


def test_other_code_makes_a_record_stale(stored: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "code_digest", lambda: "other")
    assert stored.seal("decay") is None


def test_equal_sections_are_equal_bytes(tmp_path: Path) -> None:
    folders = []
    for name in ("a", "b"):
        with open_store(tmp_path / name, SPEC) as store:
            store.save("decay", SECTION, seconds=1.0)
            folders.append(store.stage_dir("decay"))
    for name in ("section.json", "trajectories.npz", "seal.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_with_another_run_is_refused_and_untouched(tmp_path: Path) -> None:
    with open_store(tmp_path / "run", SPEC):
        pass
    other = make_spec(PAPER, ["n=9"], seed=3)
    with (
        pytest.raises(StorageError, match="n=8 there, 9 here; seed=0 there, 3 here"),
        open_store(tmp_path / "run", other),
    ):
        pass
    assert json.loads((tmp_path / "run" / "spec.json").read_text())["settings"]["n"] == 8


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StorageError, match="not empty and holds no run"), open_store(tmp_path, SPEC):
        pass


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="choose another --out"), open_store(tmp_path / "file" / "run", SPEC):
        pass


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with open_store(tmp_path, SPEC):
        with pytest.raises(StorageError, match="another run is working"), open_store(tmp_path, SPEC):
            pass
    with open_store(tmp_path, SPEC):
        pass


def test_leftovers_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    with open_store(tmp_path, SPEC) as store:
        leftover = store.root / ".claims.json.x1.tmp"
        leftover.touch()
    with open_store(tmp_path, SPEC):
        assert not leftover.exists()
