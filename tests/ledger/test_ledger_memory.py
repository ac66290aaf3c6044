"""Bytes that a step with a ledger needs beyond a step without one, counted as tensors come and go."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import allocated
import lawful
from lawful.conservation import compiled
from lawful.ledger.ledger import Ledger

OPTIMISERS = {
    "plain": lambda p: torch.optim.SGD(p, lr=1e-3),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-5),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-5),
}
COPIES = {"plain": 0.4, "momentum": 0.4, "nesterov": 0.4, "adam": 0.4, "nadam": 1.0}


def training(name, rule):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(700, 900), nn.ReLU(), nn.Linear(900, 900), nn.ReLU(), nn.Linear(900, 10))
    if rule is not None:
        lawful.attach(model, rule)
    optimizer = OPTIMISERS[name](model.parameters())
    x = torch.randn(4, 700)

    def step():
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return model, optimizer, step


def peak(step):
    """The most bytes allocated at once during two steps, beyond those from before."""
    return allocated.peak(lambda: (step(), step()))


@pytest.mark.parametrize("split_every", [1, 10**9])
@pytest.mark.parametrize("rule", [None, lawful.FeedbackAlignment(seed=1)], ids=["bp", "fa"])
@pytest.mark.parametrize("numba", [True, False])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_step_needs_at_most_one_copy_of_the_tracked_weights(name, numba, rule, split_every, monkeypatch):
    monkeypatch.setattr(compiled, "is_available", lambda: numba)
    _, _, step = training(name, rule)
    plain = peak(step)
    model, optimizer, step = training(name, rule)
    with Ledger(model, optimizer, split_every=split_every) as ledger:
        ledger.steps = 1  # step 0 is split always
        extra = peak(step) - plain
    tracked = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if n != "4.bias")
    books = (len(ledger.parts) + 6) * ledger.start.numel() * 8
    assert extra <= COPIES[name] * tracked + books
    assert (extra >= 0.5 * tracked) == (COPIES[name] == 1.0)  # and the copy there is has been counted
