"""Errors against explicit formulas; the guarantee against the corollary written out; the forecast."""

import numpy as np
import pytest
import torch
from torch import nn

import lawful
from cases import MLP
from lawful.errors import AttachmentError
from lawful.ledger.ledger import Ledger
from lawful.measures.deltas import agreement
from lawful.measures.guarantee import guarantees


def _cos(a, b):
    return (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)


def test_cosines_against_the_explicit_backward_pass():
    case = MLP((4, 5, 6, 3))
    model, x = case.module(), case.batch()
    back = lawful.attach(model, lawful.FeedbackAlignment(seed=3)).feedback
    y = torch.ones(5, 3, dtype=torch.float64)
    found = agreement(model, lambda net: 0.5 * ((net(x) - y) ** 2).sum())
    layers = [model[i] for i in (0, 2, 4)]
    a, h = [x.numpy()], []
    for layer in layers:
        h.append(a[-1] @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())
        a.append(np.maximum(h[-1], 0))
    e = h[-1] - 1.0
    W = {"2": layers[1].weight.detach().numpy(), "4": layers[2].weight.detach().numpy()}
    B = {"2": back["2.weight"].numpy(), "4": back["4.weight"].numpy()}
    deltas = {}
    for kind, M in (("fed", B), ("true", W)):
        d2 = (e @ M["4"]) * (h[1] > 0)
        deltas[kind] = {"4": e, "2": d2, "0": (d2 @ M["2"]) * (h[0] > 0)}
    for i, name in enumerate(("0", "2", "4")):
        fed, true = deltas["fed"][name], deltas["true"][name]
        assert found.deltas[name] == pytest.approx(_cos(fed, true), abs=1e-10)
        assert found.gradients[f"{name}.weight"] == pytest.approx(_cos(fed.T @ a[i], true.T @ a[i]), abs=1e-10)
    assert abs(found.deltas["0"]) < 0.99 and all(p.grad is None for p in model.parameters())


def test_an_unattached_model_is_refused():
    with pytest.raises(AttachmentError):
        agreement(nn.Linear(2, 1), lambda net: net(torch.ones(1, 2)).sum())


def _trained(rule, steps=40, lr=0.05):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    lawful.attach(model, rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    x, y = torch.randn(16, 4, dtype=torch.float64), torch.randn(16, 2, dtype=torch.float64)
    ledger = Ledger(model, optimizer, record_every=10)
    with ledger:
        for _ in range(steps):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
    return model, ledger


def test_the_bound_is_the_corollarys_and_below_the_alignment():
    model, ledger = _trained(lawful.FeedbackAlignment(seed=1))
    (found,) = guarantees(ledger)
    B = lawful.attachment_of(model).feedback["2.weight"]
    W1, b1, W2 = model[0].weight.detach(), model[0].bias.detach(), model[2].weight.detach()
    alignment = (W2 * B).sum(0)
    torch.testing.assert_close(found.alignment, alignment)
    torch.testing.assert_close(found.bound, alignment - 0.5 * (W1**2).sum(1) - 0.5 * b1**2)
    assert bool((found.alignment >= found.bound).all())
    # plain SGD: the bound has lost exactly half the sum of squared steps
    torch.testing.assert_close(found.start - found.bound, ledger.parts["finite step"], rtol=1e-9, atol=1e-15)
    assert bool((found.erosion >= 0).all())
    assert float(found.layer.bound) == pytest.approx(float(found.bound.sum()))


def test_the_forecast_is_a_straight_line_to_zero():
    _, ledger = _trained(lawful.FeedbackAlignment(seed=1, init="aligned"))
    for window in (None, 10):
        (found,) = guarantees(ledger, window=window)
        ahead = found.bound > 0
        assert bool(ahead.any()) and bool((found.step[~ahead] == 40).all())
        left = found.step[ahead] - 40
        torch.testing.assert_close(found.bound[ahead] - left * found.erosion[ahead], torch.zeros_like(left))
    recent, overall = guarantees(ledger, window=10)[0], guarantees(ledger)[0]
    (q, last) = (ledger.history[-2][1], ledger.history[-1][1])
    torch.testing.assert_close(recent.erosion, (last - q) / 10)
    assert bool((recent.erosion.sum() < overall.erosion.sum()).all()), "training settles: the forecast is early"


def test_backpropagation_has_no_such_guarantee():
    _, ledger = _trained(lawful.Backprop(), steps=2)
    assert guarantees(ledger) == []


@pytest.mark.parametrize("rule", [lawful.Backprop(), lawful.KolenPollack()], ids=repr)
def test_zero_weights_do_not_turn_another_potential_into_an_alignment(rule):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2, bias=False)).double()
    nn.init.zeros_(model[2].weight)
    lawful.attach(model, rule)
    with Ledger(model, torch.optim.SGD(model.parameters(), lr=0.1)) as ledger:
        assert guarantees(ledger) == []
