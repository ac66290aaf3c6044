"""The folder of one run: atomic writes, sealed stage records, one writer at a time.

```
DIR/spec.json                      what was asked
DIR/stages/<id>/section.json       a stage's section, without its arrays
DIR/stages/<id>/trajectories.npz   its arrays
DIR/stages/<id>/seal.json          written last: the SHA-256 of both, and of the code that made them
```

A stage counts as done when its seal matches its files, the spec and the code; otherwise it is measured again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray

import lawful
from lawful.errors import LawfulError
from lawful.experiments.claims import Claim
from lawful.experiments.records import Figure, Line, Panel, Section, Table
from lawful.experiments.spec import Spec

SPEC_FILE = "spec.json"
SECTION_FILE = "section.json"
ARRAYS_FILE = "trajectories.npz"
SEAL_FILE = "seal.json"
_TEMPORARY = ".tmp"
_SCRATCH = "unfinished-"


class StorageError(LawfulError):
    """A folder cannot be used, or a file in it cannot be written."""


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes ``path`` whole or not at all: a temporary file in the same folder, fsync, rename.

    Raises:
        StorageError: The system refused (permissions, a full disk).
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files for the owner's eyes only; a report is to be shared.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; free some space or choose another --out") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


@functools.cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@functools.cache
def code_digest() -> str:
    """SHA-256 of lawful's sources below the reports: a stage measured by other code is measured again."""
    root = Path(lawful.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not name.startswith(("cli/", "reports/")):
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


class Store:
    """The folder of one run. Use `open_store` to create or reopen one.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def spec(self) -> dict[str, Any]:
        """The stored spec as plain data."""
        try:
            return json.loads((self.root / SPEC_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StorageError(
                f"{self.root} holds no readable {SPEC_FILE}; choose another --out or delete it"
            ) from error

    def stage_dir(self, stage: str) -> Path:
        """Where a stage's record lies."""
        return self.root / "stages" / stage

    def save(self, stage: str, section: Section, *, seconds: float) -> None:
        """Stores a finished stage; its seal comes last, so a record cut short is no record."""
        folder = self.stage_dir(stage)
        # An older seal must not vouch for a mixture of old and new files.
        (folder / SEAL_FILE).unlink(missing_ok=True)
        contents = {SECTION_FILE: _section_json(section), ARRAYS_FILE: _npz(section.arrays)}
        for name, content in contents.items():
            write_atomic(folder / name, content)
        seal = {
            "code": code_digest(),
            "spec": self._spec_digest(),
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
            "seconds": round(seconds, 3),
        }
        write_atomic(folder / SEAL_FILE, json.dumps(seal, indent=2, sort_keys=True) + "\n")
        for scratch in folder.glob(f"{_SCRATCH}*"):
            shutil.rmtree(scratch)

    def scratch(self, stage: str) -> Path:
        """Where an unfinished stage may keep what it goes on from; other code has another folder. Gone once sealed."""
        return self.stage_dir(stage) / f"{_SCRATCH}{code_digest()[:12]}"

    def seal(self, stage: str) -> dict[str, Any] | None:
        """The stage's seal when the record is whole and was made by this spec and this code, else None."""
        folder = self.stage_dir(stage)
        try:
            seal = json.loads((folder / SEAL_FILE).read_bytes())
            found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in seal["files"]}
        except (OSError, ValueError, TypeError, KeyError):
            return None
        whole = found == seal["files"] and seal.get("spec") == self._spec_digest() and seal.get("code") == code_digest()
        return seal if whole else None

    def load(self, stage: str) -> Section:
        """The stored section of a finished stage."""
        folder = self.stage_dir(stage)
        data = json.loads((folder / SECTION_FILE).read_bytes())
        with np.load(folder / ARRAYS_FILE) as arrays:
            return _section_from(data, {name: arrays[name] for name in arrays.files})

    def write(self, name: str, content: bytes | str) -> Path:
        """Writes one file of the run atomically; returns its path."""
        path = self.root / name
        write_atomic(path, content)
        return path

    def _spec_digest(self) -> str:
        return hashlib.sha256((self.root / SPEC_FILE).read_bytes()).hexdigest()


@contextmanager
def open_store(root: Path, spec: Spec) -> Iterator[Store]:
    """The store of ``spec`` in ``root``, created or reopened, locked against a second writer.

    Raises:
        StorageError: The folder cannot be written, is busy, or holds something else.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(root / ".lock")
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise StorageError(f"another run is working in {root}; wait for it or choose another --out") from error
    except OSError as error:
        raise StorageError(f"cannot write in {root}: {error.strerror}; choose another --out") from error
    try:
        _check_content(root, spec)
        for leftover in root.rglob(f".*{_TEMPORARY}"):
            leftover.unlink()
        write_atomic(root / SPEC_FILE, spec.json)
        yield Store(root)
    finally:
        lock.release()


def _check_content(root: Path, spec: Spec) -> None:
    visible = [path.name for path in root.iterdir() if not path.name.startswith(".")]
    if not visible:
        return
    if SPEC_FILE not in visible:
        raise StorageError(f"{root} is not empty and holds no run; choose another --out")
    found, wanted = _flat(Store(root).spec), _flat(json.loads(spec.json))
    if found.get("paper") != wanted.get("paper"):
        raise StorageError(f"{root} holds a run of {found.get('paper')!r}; choose another --out or delete it")
    differing = [
        f"{key}={found.get(key)} there, {wanted.get(key)} here"
        for key in sorted({*found, *wanted})
        if found.get(key) != wanted.get(key)
    ]
    if differing:
        raise StorageError(f"{root} holds another run ({'; '.join(differing)}); choose another --out or delete it")


def _flat(spec: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in spec.items() if key != "settings"}
    return rest | dict(spec.get("settings", {}))


def _npz(arrays: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    named: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    # Zip entries written by name carry the fixed date 1980-01-01, so equal arrays give equal bytes.
    np.savez_compressed(buffer, **named)
    return buffer.getvalue()


def _section_json(section: Section) -> bytes:
    fields = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    del fields["arrays"]
    return (json.dumps(fields, indent=1, ensure_ascii=False, default=_plain) + "\n").encode()


def _plain(value: Any) -> Any:
    """Records as dicts and arrays as lists, for JSON."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Sequence):
        return list(value)
    return np.asarray(value).tolist()


def _section_from(data: dict[str, Any], arrays: dict[str, NDArray]) -> Section:
    data["claims"] = [Claim(**claim) for claim in data["claims"]]
    data["figures"] = [_figure_from(figure) for figure in data["figures"]]
    data["tables"] = [Table(**table) for table in data["tables"]]
    return Section(**data, arrays=arrays)


def _figure_from(data: dict[str, Any]) -> Figure:
    panels = [Panel(**panel | {"lines": [Line(**line) for line in panel["lines"]]}) for panel in data["panels"]]
    return Figure(data["id"], data["title"], data["caption"], panels)
