"""Convolutions, residual streams and recurrence: counts against the channel laws written out by hand."""

import numpy as np
import pytest
import torch

from lawful.errors import SettingError
from lawful.finder import residues as ff
from lawful.finder import tied
from lawful.finder.tied import convolution, find_laws_of_tied, rate_of_tied, recurrent, residual


@pytest.mark.parametrize("rule", ["bp", "fa"])
@pytest.mark.parametrize(
    ("network", "count"),
    [(convolution(4, (1, 2), 2, 1), 2), (convolution(4, (1, 2, 2), 2, 2), 4), (recurrent(2, 2, 2, 1), 2)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_one_law_a_channel(network, count, rule):
    found = find_laws_of_tied(network, rule)
    assert (found.count, found.bound, found.certified) == (count, count, True)


def test_residual_stream_keeps_the_matrix_laws():
    found = find_laws_of_tied(residual(2, 2, 2, 1), "bp")
    assert found.certified and found.count == 2 + 3


def test_the_field_is_the_gradient_of_a_torch_convolution():
    network, rng = convolution(4, (1, 2), 2, 1), np.random.default_rng(0)
    theta = rng.integers(-3, 4, network.size).astype(float)
    x, e = np.array([[1.0, -2.0, 3.0, 1.0]]), np.array([[2.0]])
    kernel = torch.tensor(theta[:4]).reshape(2, 1, 2).requires_grad_()
    readout = torch.tensor(theta[4:]).reshape(1, 6).requires_grad_()
    h = torch.nn.functional.conv1d(torch.tensor(x)[None], kernel)
    (torch.relu(h).reshape(1, 6) @ readout.T).backward(torch.tensor(e))
    masks = [(h.detach().reshape(1, 6) > 0).double().numpy()]
    assert kernel.grad is not None and readout.grad is not None
    expected = -np.concatenate([kernel.grad.numpy().ravel(), readout.grad.numpy().ravel()])
    field = tied._field(network, "bp", theta, (x, e, masks), [theta])[0]
    np.testing.assert_array_equal(ff.reduce(expected), field[0])


def test_a_wrong_law_is_refused():
    network = convolution(4, (1, 2), 2, 1)
    assert rate_of_tied(network, "bp", {(0, 0): 1})
    with pytest.raises(SettingError, match="rule"):
        find_laws_of_tied(network, "dfa")
