"""Convolutions of every kind against the saved-tensor oracle."""

from __future__ import annotations

import pytest
import torch
from oracle import check_against_oracle, gradients
from torch import nn

import lawful

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
OPTIONS = {
    "plain": {},
    "stride": {"stride": 2, "padding": 1},
    "dilation": {"dilation": 2, "padding": 2},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4},
    "no bias": {"bias": False},
    "same": {"padding": "same"},
    "same, uneven": {"padding": "same", "kernel_size": 4},
    "valid": {"padding": "valid"},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "replicate": {"padding": 2, "padding_mode": "replicate"},
    "circular, same": {"padding": "same", "padding_mode": "circular", "dilation": 2},
}


def data(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_convolutions(dims, options):
    torch.manual_seed(dims)
    settings = {"kernel_size": 3} | options
    model = nn.Sequential(
        CONV[dims](4, 4, **settings, dtype=torch.float64), nn.ReLU(), CONV[dims](4, 3, 2, dtype=torch.float64)
    )
    check_against_oracle(model, data(2, 4, *[7] * dims))
    check_against_oracle(CONV[dims](4, 4, **settings, dtype=torch.float64), data(4, *[7] * dims))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1, "output_padding": 1}, {"groups": 2, "dilation": 2}, {"bias": False}],
    ids=["plain", "stride", "groups", "no bias"],
)
def test_transposed_convolutions(dims, options):
    torch.manual_seed(dims)
    make = TRANSPOSED[dims]
    model = nn.Sequential(make(4, 6, 3, **options, dtype=torch.float64), nn.Tanh(), make(6, 2, 2, dtype=torch.float64))
    check_against_oracle(model, data(2, 4, *[4] * dims))


def test_output_size_is_passed_on():
    model = nn.ConvTranspose2d(3, 2, 3, stride=2, dtype=torch.float64)
    x = data(1, 3, 4, 4)
    expected = model(x, output_size=[10, 10])
    lawful.attach(model, lawful.FeedbackAlignment())
    assert torch.equal(model(x, output_size=[10, 10]), expected)


def test_the_adjoint_written_out():
    """δ_{i-1}[c, p] = Σ_o Σ_q δ_i[o, p − q] B[o, c, q], by loops."""
    model = nn.Conv1d(2, 3, 2, dtype=torch.float64)
    B = lawful.attach(model, lawful.FeedbackAlignment(seed=3)).feedback["weight"]
    x = data(1, 2, 5).requires_grad_()
    delta = data(1, 3, 4, seed=1)
    model(x).backward(delta)
    sent = torch.zeros(2, 5, dtype=torch.float64)
    for o in range(3):
        for c in range(2):
            for p in range(4):
                for q in range(2):
                    sent[c, p + q] += delta[0, o, p] * B[o, c, q]
    torch.testing.assert_close(x.grad[0], sent, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    "model, x",
    [
        (nn.Conv2d(2, 3, 2, groups=1), (1, 2, 4, 4)),
        (nn.ConvTranspose1d(2, 3, 2), (1, 2, 4)),
        (nn.Linear(4, 3), (2, 4)),
        (nn.Bilinear(4, 4, 3), None),
    ],
    ids=["conv", "transposed", "linear", "bilinear"],
)
def test_rules_with_their_own_transport_meet_the_error_only(model, x):
    """Sign-FA sends signs through every kind of map, and leaves weight and bias gradients alone."""
    model = model.double()
    inputs = [data(*x)] if x else [data(2, 4), data(2, 4, seed=1)]
    plain = gradients(model, *inputs)
    lawful.attach(model, lawful.SignFeedbackAlignment(magnitude=0.5))
    ours = gradients(model, *inputs)
    for name in ("weight", "bias"):
        torch.testing.assert_close(ours[name], plain[name], rtol=1e-12, atol=1e-12)
    assert ours["input 0"].abs().unique().tolist() in ([0.5], [0.0, 0.5])
