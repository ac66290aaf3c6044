"""The handwritten digits of scikit-learn: 1797 real images of 8 × 8 pixels that come with it; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from lawful.errors import SettingError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Classification:
    """A data set split in two.

    Attributes:
        x_train: inputs (n, d).
        y_train: class numbers (n,).
        x_test: inputs (n', d).
        y_test: class numbers (n',).
        classes: the name of each class.
    """

    x_train: Floats
    y_train: Integers
    x_test: Floats
    y_test: Integers
    classes: tuple[str, ...]


TASKS: Final[dict[str, tuple[Callable[[Integers], Integers], tuple[str, ...]]]] = {
    "digit": (lambda y: y, tuple("0123456789")),
    "parity": (lambda y: y % 2, ("even", "odd")),
    "half": (lambda y: (y >= 5).astype(np.int64), ("0-4", "5-9")),
}
"""Task -> (digit to class, class names)."""


def digits(task: str = "digit", *, test_fraction: float = 0.2, seed: int = 0) -> Classification:
    """The digits with one of several labels, shuffled and split, pixels standardised.

    Pixels (0 to 16) are centred per pixel and divided by one common scale, both from the training part; pixels that
    are constant there stay zero.

    Args:
        task: a key of :data:`TASKS`: "digit" has ten classes, "parity" and "half" two.
        test_fraction: share of the images in the test part.
        seed: of the shuffle.

    Raises:
        SettingError: unknown task, or a fraction that leaves one part empty.

    >>> data = digits("parity")
    >>> data.x_train.shape, data.x_test.shape, data.classes
    ((1438, 64), (359, 64), ('even', 'odd'))
    """
    if task not in TASKS:
        raise SettingError(f"task must be one of {', '.join(TASKS)}; got {task!r}")
    relabel, names = TASKS[task]
    images, labels = load_digits(return_X_y=True)
    num_test = round(test_fraction * len(images))
    if not 0 < num_test < len(images):
        raise SettingError(f"test_fraction must leave images in both parts; got {test_fraction!r}")
    order = np.random.default_rng(seed).permutation(len(images))
    x = np.asarray(images, dtype=np.float64)[order]
    y = relabel(np.asarray(labels, dtype=np.int64)[order])
    train = x[num_test:]
    mean, scale = train.mean(0), train.std()
    x = (x - mean) / scale
    return Classification(x[num_test:], y[num_test:], x[:num_test], y[:num_test], names)
