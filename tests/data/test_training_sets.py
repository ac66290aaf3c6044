"""The data sets that training uses: what they say they are, and the same on every call."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch

from lawful.data import images
from lawful.data.registry import DATA, load_data
from lawful.errors import SettingError

SHAPES = {
    "digits": ((1500, 1, 8, 8), (297, 1, 8, 8), 10),
    "mnist5k": ((4000, 1, 28, 28), (1000, 1, 28, 28), 10),
    "fashion": ((60000, 1, 28, 28), (10000, 1, 28, 28), 10),
    "mnist1d": ((4000, 1, 40), (1000, 1, 40), 10),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_scale_and_repetition(name):
    try:
        data = load_data(name)
    except SettingError as absent:
        if "install" not in str(absent):  # data of an extra, or of a Debian package; anything else is a bug
            raise
        pytest.skip(str(absent))
    train, test, outputs = SHAPES[name]
    assert (tuple(data.x.shape), tuple(data.x_test.shape), data.outputs) == (train, test, outputs)
    assert data.x.dtype == torch.float32 and data.y.dtype == torch.int64
    assert abs(float(data.x.mean())) < 1e-5 and abs(float(data.x.std()) - 1) < 1e-3
    counts = torch.bincount(data.limited(1000).y, minlength=outputs)
    assert counts.min() > 50, "the first examples are a fair sample of all classes"


def test_what_is_generated_is_the_same_every_time():
    pytest.importorskip("mnist1d")
    before = np.random.get_state()[1].copy()
    assert torch.equal(load_data("mnist1d").x, load_data("mnist1d").x)
    assert np.array_equal(before, np.random.get_state()[1]), "the global stream is left alone"


def test_text_targets_are_the_next_character():
    data = load_data("text")
    assert data.is_text and data.outputs == 96 and data.input_shape == (64,)
    assert torch.equal(data.x[:, 1:], data.y[:, :-1])
    assert int(data.x.max()) < 96 and len(data.x) > 8 * len(data.x_test) > 1000


def test_limits_and_names():
    digits = load_data("digits")
    assert torch.equal(digits.limited(7).x, digits.x[:7]) and digits.limited(None) is digits
    with pytest.raises(SettingError, match="examples must lie in 1 … 1500"):
        digits.limited(0)
    with pytest.raises(SettingError, match=f"data must be one of {', '.join(DATA)}"):
        load_data("cifar")


def test_fashion_reads_the_idx_format(tmp_path):
    with pytest.raises(SettingError, match="apt install dataset-fashion-mnist"):
        images.fashion(tmp_path / "nowhere")
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    header = bytes([0, 0, 8, 3]) + np.array(pixels.shape, ">i4").tobytes()
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(header + pixels.tobytes()))
    assert np.array_equal(images._idx(path), pixels)
