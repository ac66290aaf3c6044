"""Which channels have positions that hold nothing: zeros in the example, or for inputs of other lengths."""

from __future__ import annotations

import numpy as np
import torch

from lawful.conservation.balance import Ids
from lawful.conservation.labels import ZERO, channels_of


class Padding:
    """The channels that went through a padding, if only by nothing, and through which.

    Code that pads to a length shows no zeros in an example of just that length.
    """

    def __init__(self) -> None:
        self._calls: dict[int, frozenset[int]] = {}
        self._count = 0

    def add(self, labels: torch.Tensor) -> None:
        """These channels are padded, all at the same positions."""
        self._count += 1
        for i in channels_of(labels):
            self._calls[i] = self._calls.get(i, frozenset()) | {self._count}

    def inherit(self, source: Ids, into: Ids) -> None:
        """Channels ``into`` have the positions of ``source``, elementwise: what was padded is padded still."""
        if self._calls:
            for i, j in zip(source.tolist(), into.tolist(), strict=True):
                if i in self._calls:
                    self._calls[j] = self._calls.get(j, frozenset()) | self._calls[i]

    def of(self, channels: Ids) -> np.ndarray:
        """Which of these channels are padded."""
        return np.isin(channels, list(self._calls))

    def reaches(self, labels: torch.Tensor) -> bool:
        """Whether positions are zero here, or would be for inputs of other lengths."""
        if bool((labels == ZERO).any()):
            return True
        return bool(self._calls) and not self._calls.keys().isdisjoint(channels_of(labels))

    def divides(self, labels: torch.Tensor) -> bool:
        """Whether at one position some of these channels may be zero and others not."""
        if bool((labels == ZERO).any()):
            return bool((labels != ZERO).any())
        return bool(self._calls) and len({self._calls.get(i) for i in channels_of(labels)}) > 1
