"""What a data set is to the training loop: tensors, split once and for all, and the number of outputs they ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from lawful.errors import SettingError


@dataclass(frozen=True)
class DataSet:
    """Inputs with integer targets, every target a class index.

    Attributes:
        name: how the command line calls it.
        x: training inputs (n, …): float images or series, or integer tokens (n, T).
        y: training targets (n,), or (n, T) for text: the next token at every position.
        x_test: test inputs.
        y_test: test targets.
        outputs: number of classes, or size of the vocabulary.
    """

    name: str
    x: torch.Tensor
    y: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    outputs: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.x.shape[1:])

    @property
    def is_text(self) -> bool:
        """Whether the inputs are tokens and there is a target at every position."""
        return self.y.ndim == 2

    def limited(self, examples: int | None) -> DataSet:
        """The same with the first ``examples`` training examples only (they are in random order already)."""
        if examples is None:
            return self
        if not 1 <= examples <= len(self.x):
            raise SettingError(f"examples must lie in 1 … {len(self.x)} for data {self.name!r}; got {examples}")
        return replace(self, x=self.x[:examples], y=self.y[:examples])


Loader = Callable[[], DataSet]


def classification(
    name: str, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], *, standardise: bool = True
) -> DataSet:
    """A data set of float32 inputs, standardised by the mean and deviation of all training pixels."""
    x, x_test = (np.asarray(part[0], np.float32) for part in (train, test))
    if standardise:
        mean, deviation = x.mean(), x.std()
        x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    y, y_test = (torch.from_numpy(np.asarray(part[1], np.int64)) for part in (train, test))
    return DataSet(name, torch.from_numpy(x), y, torch.from_numpy(x_test), y_test, int(y.max()) + 1)


def shuffled_split(x: np.ndarray, y: np.ndarray, test: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """(train, test), the last ``test`` examples of one fixed permutation being the test set."""
    order = np.random.default_rng(0).permutation(len(x))
    head, tail = order[:-test], order[-test:]
    return (x[head], y[head]), (x[tail], y[tail])
