"""Checkpoints: tensors in safetensors, everything else in JSON, no pickle; each is whole or does not exist."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from lawful.errors import SettingError

_PREFIX = "checkpoint-"
_KEEP = 2


def pack(value: Any, tensors: dict[str, torch.Tensor], path: str = "") -> Any:
    """``value`` as JSON, its tensors put aside under their paths; the inverse of :func:`unpack`.

    Args:
        value: dicts, lists, tuples, tensors, numbers, strings, booleans, None, nested in any way.
        tensors: receives the tensors.
        path: where we are.

    Raises:
        SettingError: something else is in there; the message says where.
    """
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu().clone().contiguous()
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {"dict": [[pack(k, tensors), pack(v, tensors, f"{path}/{k}")] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [pack(item, tensors, f"{path}/{i}") for i, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise SettingError(f"a checkpoint holds tensors, numbers, text and their containers; got {type(value)} at {path!r}")


def unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The value that :func:`pack` took apart."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    return _UNPACK[kind](content, tensors)


_UNPACK = {
    "tensor": lambda content, tensors: tensors[content],
    "dict": lambda content, tensors: {unpack(k, tensors): unpack(v, tensors) for k, v in content},
    "list": lambda content, tensors: [unpack(item, tensors) for item in content],
    "tuple": lambda content, tensors: tuple(unpack(item, tensors) for item in content),
}


def save(value: Any, folder: Path) -> None:
    """Write ``value`` as ``tensors.safetensors`` and ``state.json``: ``folder`` appears complete, or not at all.

    The files reach the disk before the folder gets its name, so that neither a killed process nor a power cut leaves
    half a checkpoint under a good name.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    tree = pack(value, tensors)
    save_file(tensors, partial / "tensors.safetensors")
    (partial / "state.json").write_text(json.dumps(tree), encoding="utf-8")
    for path in (*partial.iterdir(), partial):
        _sync(path)
    if folder.exists():  # the same epoch once more: its content is the same too
        shutil.rmtree(folder)
    partial.rename(folder)
    _sync(folder.parent)


def load(folder: Path) -> Any:
    """What :func:`save` wrote."""
    tree = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return unpack(tree, load_file(folder / "tensors.safetensors"))


def folder_for(run: Path, epoch: int) -> Path:
    """Where the checkpoint after ``epoch`` epochs lies."""
    return run / f"{_PREFIX}{epoch:05d}"


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run, if there is one."""
    return max(run.glob(f"{_PREFIX}*"), default=None)


def prune(run: Path) -> None:
    """Remove all but the newest checkpoints, and what killed processes left unfinished."""
    stale = sorted(run.glob(f"{_PREFIX}*"))[:-_KEEP]
    for folder in (*stale, *run.glob(f".{_PREFIX}*.partial")):
        shutil.rmtree(folder)


def random_state() -> dict[str, Any]:
    """The state of every global random generator: torch's, NumPy's and Python's."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *(float(r) for r in rest)],
        "python": random.getstate(),
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put :func:`random_state` back."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), int(position), int(has_gauss), gauss))
    random.setstate(state["python"])


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
