"""A potential that is no sum over neurons, ‖W‖₁²/(2N) of adaptive uSF: the sum over a layer is conserved, no less."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import lawful
from lawful.checking import lawcheck
from lawful.conservation.derive import laws_of

ADAPTIVE = lawful.UniformSignSymmetry(adaptive=True)


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    lawful.attach(model, ADAPTIVE)
    return model


def by_hand(model):
    """Σ_j ½‖W_i[j]‖² + ½b_i[j]², less ‖W_{i+1}‖₁²/(2N), for both hidden layers."""
    first, second, last = (model[i] for i in (0, 2, 4))
    return [_layer(first, second), _layer(second, last)]


def _layer(w, r):
    own = w.weight.square().sum() / 2 + w.bias.square().sum() / 2
    return float((own - r.weight.abs().sum() ** 2 / (2 * r.weight.numel())).detach())


def test_the_value_is_the_sum_by_hand():
    model = build()
    laws = laws_of(model).of_kind("neuron")
    assert [law.names for law in laws] == [("0 · sum",), ("2 · sum",)]
    values = laws.values(model)
    np.testing.assert_allclose([float(values[name]) for name in ("0 · sum", "2 · sum")], by_hand(model))


def test_the_feedback_is_the_gradient_of_the_whole_and_of_nothing_less():
    W = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    total = ADAPTIVE.whole_potential(W, {})
    (gradient,) = torch.autograd.grad(total.sum(), W, retain_graph=True)
    torch.testing.assert_close(gradient, ADAPTIVE.feedback(W.detach(), {}))
    (part,) = torch.autograd.grad(total[:, 0].sum(), W)
    assert not torch.allclose(part[:, 0], ADAPTIVE.feedback(W.detach(), {})[:, 0])


@pytest.mark.parametrize("halved", [False, True])
def test_a_ledger_keeps_its_books_and_notices_a_wrong_gradient(halved):
    model = build()
    if halved:
        model[2].weight.register_hook(lambda g: g / 2)
    x, y = torch.randn(16, 3).double(), torch.randn(16, 2).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with lawful.Ledger(model, optimizer) as ledger:
        start = by_hand(model)
        for _ in range(50):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
        moved = np.subtract(by_hand(model), start)
    booked = dict(zip(ledger.names, sum(ledger.parts.values()).tolist(), strict=True))
    np.testing.assert_allclose([booked["0 · sum"], booked["2 · sum"]], moved, rtol=1e-9, atol=1e-13)
    assert float(ledger.residual.max()) < 1e-10
    assert (float(ledger.violation.max()) < 1e-12) != halved


def test_one_neuron_alone_is_not_conserved():
    """The flow, by small steps: the sum stays to second order, single neurons do not."""
    model = build()
    x, y = torch.randn(16, 3).double(), torch.randn(16, 2).double()

    def single():
        (w, r) = (model[0], model[2])
        own = w.weight.square().sum(1) / 2 + w.bias.square() / 2
        return (own - r.weight.abs().mean() * r.weight.abs().sum(0) / 2).detach()

    before, total = single(), by_hand(model)[0]
    for _ in range(200):
        model.zero_grad()
        (model(x) - y).square().mean().backward()
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(1e-4 * p.grad)
    assert abs(by_hand(model)[0] - total) < 0.02 * float((single() - before).abs().max())


def test_part_of_a_weight_is_not_enough():
    """Two halves of a stream are written apart, and one weight reads both: neither half has a law."""

    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, x):
            return self.c(torch.cat([self.a(x).relu(), self.b(x).relu()], -1))

    model = Halves().double()
    lawful.attach(model, ADAPTIVE)
    x = torch.randn(5, 3).double()
    assert not laws_of(model, x).of_kind("neuron")
    assert lawcheck(model, x).ok


def test_lawcheck_reads_the_whole_of_a_large_weight():
    """Blocks of rows would each have a mean of their own."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 9000))
    assert lawcheck(model, torch.randn(3, 2), rule=ADAPTIVE).ok
