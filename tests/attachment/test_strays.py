"""Weights that errors travel through outside of their module are found in the first forward pass, not passed by."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

import lawful
from lawful.errors import CoverageError

TOKENS = torch.tensor([[0, 3, 5], [6, 1, 1]])


class Net(nn.Module):
    def __init__(self, head) -> None:
        super().__init__()
        self.emb, self.place, self.fc = nn.Embedding(7, 4), nn.Embedding(3, 4), nn.Linear(4, 4)
        self.head = head

    def forward(self, tokens):
        return self.head(self, self.fc(self.emb(tokens) + self.place.weight).relu())


STRAYS = {
    "F.linear": lambda net, h: F.linear(h, net.emb.weight),
    "T": lambda net, h: h @ net.emb.weight.T,
    "t": lambda net, h: torch.matmul(h, net.emb.weight.t()),
    "reflected": lambda net, h: (net.emb.weight @ h.mT).mT,
    "of a layer": lambda net, h: F.linear(h, net.fc.weight),
    "scaled": lambda net, h: F.linear(h, 2 * net.emb.weight),
    "joined": lambda net, h: F.linear(h, torch.cat([net.emb.weight, net.fc.weight])),
    "einsum": lambda net, h: torch.einsum("btd,vd->btv", h, net.emb.weight),
    "checkpointed": lambda net, h: checkpoint(lambda x: x @ net.emb.weight.T, h, use_reentrant=False),
}
HARMLESS = {
    "the module": lambda net, h: net.fc(h),
    "added": lambda net, h: h + net.fc.weight[0],
    "looked up": lambda net, h: h + F.embedding(TOKENS, net.emb.weight),
    "penalty": lambda net, h: h + (net.fc.weight @ net.fc.weight.T).trace(),
    "detached": lambda net, h: h + (h @ net.emb.weight.detach().T).sum(),
    "asked": lambda net, h: h.to(net.fc.weight.dtype) * net.fc.weight.shape[0],
}


def hooks(net):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


@pytest.mark.parametrize("head", STRAYS.values(), ids=STRAYS)
def test_a_product_outside_of_the_module_raises_where_it_is(head):
    net = Net(head)
    lawful.attach(net, lawful.FeedbackAlignment())
    before = hooks(net)
    for _ in range(2):  # not the first time only
        with pytest.raises(CoverageError, match=r"(emb|fc)\.weight is multiplied with"):
            net(TOKENS)
        assert not _get_current_function_mode_stack()
        assert hooks(net) == before


@pytest.mark.parametrize("head", STRAYS.values(), ids=STRAYS)
def test_without_strict_it_is_listed(head):
    net = Net(head)
    attachment = lawful.attach(net, lawful.FeedbackAlignment(), strict=False)
    net(TOKENS).sum().backward()
    assert any(what.startswith("NOT COVERED") and "multiplied" in what for what in attachment.coverage.values())


@pytest.mark.parametrize("head", HARMLESS.values(), ids=HARMLESS)
def test_other_uses_are_nobodys_business(head):
    net = Net(head)
    attachment = lawful.attach(net, lawful.FeedbackAlignment())
    for _ in range(2):
        net(TOKENS).sum().backward()
    assert not any("NOT COVERED" in what for what in attachment.coverage.values())
    assert not _get_current_function_mode_stack()
    attachment.remove()
    assert hooks(net) == 0


def test_a_head_that_shares_the_parameter_is_fed_back():
    net = Net(lambda net, h: net.out(h))
    net.out = nn.Linear(4, 7, bias=False)
    net.out.weight = net.emb.weight
    attachment = lawful.attach(net, lawful.FeedbackAlignment())
    net(TOKENS).sum().backward()
    assert not any("NOT COVERED" in what for what in attachment.coverage.values())


def test_under_backpropagation_there_are_no_strays():
    net = Net(STRAYS["T"])
    lawful.attach(net, lawful.Backprop())
    net(TOKENS).sum().backward()


def test_evaluation_first_does_not_use_the_look_up():
    net = Net(STRAYS["T"])
    lawful.attach(net, lawful.FeedbackAlignment())
    with torch.no_grad():
        net(TOKENS)
    with pytest.raises(CoverageError):
        net(TOKENS)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_look_for_themselves(copied):
    net = Net(_tied)
    lawful.attach(net, lawful.FeedbackAlignment())
    with pytest.raises(CoverageError):
        copied(net)(TOKENS)


def _tied(net, h):
    return h @ net.emb.weight.T
