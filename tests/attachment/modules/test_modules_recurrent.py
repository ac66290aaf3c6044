"""Recurrent nets and cells against the saved-tensor oracle."""

from __future__ import annotations

import pytest
import torch
from oracle import check_against_oracle
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import lawful

F64 = {"dtype": torch.float64}


def data(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


KINDS = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "RNN": nn.RNN,
    "ReLU RNN": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
}
OPTIONS = {
    "plain": {},
    "deep": {"num_layers": 2},
    "both ways": {"num_layers": 2, "bidirectional": True},
    "no bias, batch first": {"bias": False, "batch_first": True},
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("inputs", ["sequences", "one", "packed"])
def test_recurrent_layers(make, options, inputs):
    torch.manual_seed(0)
    model = make(3, 4, **options, **F64)
    x = {
        "sequences": data(5, 2, 3),
        "one": data(5, 3),
        "packed": pack_sequence([data(n, 3, seed=n) for n in (2, 5, 3, 5)], enforce_sorted=False),
    }[inputs]
    check_against_oracle(model, x, bitwise=False)


@pytest.mark.parametrize("inputs", ["sequences", "one", "packed"])
def test_initial_states_and_projections(inputs):
    torch.manual_seed(0)
    model = nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2, **F64)
    x = {
        "sequences": data(5, 3, 3),
        "one": data(5, 3),
        "packed": pack_sequence([data(n, 3, seed=n) for n in (2, 5, 3)], enforce_sorted=False),
    }[inputs]
    batch = () if inputs == "one" else (3,)
    check_against_oracle(model, x, (data(4, *batch, 2), data(4, *batch, 4, seed=1)), bitwise=False)
    gru = nn.GRU(3, 4, **F64)
    check_against_oracle(gru, x, data(1, *batch, 4), bitwise=False)


def test_dropout_between_layers_draws_the_same_mask():
    model = nn.LSTM(3, 4, num_layers=2, dropout=0.5, **F64)
    x = data(5, 2, 3)
    torch.manual_seed(0)
    expected = model(x)[0]
    lawful.attach(model, lawful.FeedbackAlignment())
    torch.manual_seed(0)
    torch.testing.assert_close(model(x)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "cell",
    [nn.LSTMCell, nn.GRUCell, nn.RNNCell, lambda *a, **k: nn.RNNCell(*a, nonlinearity="relu", **k)],
    ids=["LSTM", "GRU", "RNN", "ReLU RNN"],
)
def test_cells(cell):
    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell(3, 4, **F64)

        def forward(self, xs):
            state = None
            for x in xs:
                state = self.cell(x, state)
            return state

    torch.manual_seed(0)
    check_against_oracle(Unrolled(), data(4, 2, 3), bitwise=False)
    check_against_oracle(cell(3, 4, **F64), data(3), bitwise=False, upstream=False)
