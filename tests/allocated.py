"""Bytes of the tensors that code makes, counted as they come and go."""

from __future__ import annotations

import weakref

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class _Storages(TorchDispatchMode):
    """Follows every storage that an operation returns, in backward passes too, until nobody holds it."""

    def __init__(self):
        super().__init__()
        self.now = self.top = 0
        self._alive = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {t.untyped_storage()._cdata for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        found = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in before:
                self._follow(tensor.untyped_storage())
        return found

    def _follow(self, storage):
        if storage._cdata in self._alive:
            return
        size = storage.nbytes()
        self.now += size
        self.top = max(self.top, self.now)
        self._alive[storage._cdata] = weakref.finalize(storage, self._gone, storage._cdata, size)

    def _gone(self, key, size):
        del self._alive[key]
        self.now -= size


def peak(run):
    """The most bytes of new tensors alive at once while ``run`` runs."""
    with _Storages() as storages:
        run()
    for finalizer in storages._alive.values():
        finalizer.detach()
    return storages.top
