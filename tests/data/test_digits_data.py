"""The digits: offline, reproducible, split without overlap, labels as scikit-learn has them."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from lawful.data.digits import TASKS, digits
from lawful.errors import SettingError


@pytest.mark.parametrize("task", TASKS)
def test_split_is_a_permutation_with_the_right_labels(task):
    data = digits(task, seed=3)
    x = np.vstack([data.x_test, data.x_train])
    y = np.concatenate([data.y_test, data.y_train])
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(3).permutation(len(images))
    # undo nothing: standardising is affine with one scale, so differences between images keep their proportions
    raw = images[order]
    scale = np.linalg.norm(raw[0] - raw[1]) / np.linalg.norm(x[0] - x[1])
    np.testing.assert_allclose((x - x[0]) * scale, raw - raw[0], atol=1e-9)
    expected = {"digit": labels, "parity": labels % 2, "half": labels >= 5}[task][order]
    np.testing.assert_array_equal(y, expected)
    assert set(np.unique(y)) == set(range(len(data.classes)))


def test_standardised_by_the_training_part_alone():
    data = digits()
    np.testing.assert_allclose(data.x_train.mean(0), 0, atol=1e-12)
    assert abs(np.sqrt((data.x_train**2).mean()) - 1) < 0.5
    assert np.abs(data.x_test.mean(0)).max() > 1e-3


def test_same_seed_same_split_other_seed_another():
    np.testing.assert_array_equal(digits(seed=1).x_test, digits(seed=1).x_test)
    assert not np.array_equal(digits(seed=1).y_test, digits(seed=2).y_test)


def test_refuses():
    with pytest.raises(SettingError, match="digit, parity, half"):
        digits("letters")
    with pytest.raises(SettingError, match="test_fraction"):
        digits(test_fraction=1.0)
