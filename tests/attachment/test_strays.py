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
    "looked for": lambda net, h: h + net.emb((2 * h @ net.emb.weight.T).argmin(-1)),
    "asked": lambda net, h: h.to(net.fc.weight.dtype) * net.fc.weight.shape[0],
}


def hooks(net):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def learn(net):
    net(TOKENS).sum().backward()


def attached(net, rule=None, **options):
    return lawful.attach(net, lawful.FeedbackAlignment() if rule is None else rule, **options)


@pytest.mark.parametrize("head", STRAYS.values(), ids=STRAYS)
def test_an_error_that_comes_back_to_a_stray_product_raises_and_says_where_it_is(head):
    net = Net(head)
    attached(net)
    before = hooks(net)
    for _ in range(2):  # not the first time only
        with pytest.raises(CoverageError, match=r"(emb|fc)\.weight is multiplied with by \w+ \(.*test_strays.py:\d+\)"):
            learn(net)
        assert not _get_current_function_mode_stack()
        assert hooks(net) == before


@pytest.mark.parametrize("head", STRAYS.values(), ids=STRAYS)
def test_without_strict_it_is_listed(head):
    net = Net(head)
    attachment = attached(net, strict=False)
    learn(net)
    assert any(what.startswith("NOT COVERED") and "multiplied" in what for what in attachment.coverage.values())


@pytest.mark.parametrize("head", HARMLESS.values(), ids=HARMLESS)
def test_other_uses_are_nobodys_business(head):
    net = Net(head)
    attachment = attached(net)
    for _ in range(2):
        learn(net)
    assert not any("NOT COVERED" in what for what in attachment.coverage.values())
    assert not _get_current_function_mode_stack()
    attachment.remove()
    assert hooks(net) == 0


def test_a_head_that_shares_the_parameter_is_fed_back():
    net = Net(lambda net, h: net.out(h))
    net.out = nn.Linear(4, 7, bias=False)
    net.out.weight = net.emb.weight
    attachment = attached(net)
    learn(net)
    assert not any("NOT COVERED" in what for what in attachment.coverage.values())


def test_under_backpropagation_there_are_no_strays():
    net = Net(STRAYS["T"])
    attached(net, lawful.Backprop())
    learn(net)


def test_a_layer_under_backpropagation_may_read_an_embedding():
    net = Net(lambda net, h: net.out(h @ net.fc(net.emb.weight).T))
    net.out = nn.Linear(7, 2)
    attached(net, {"out*": lawful.FeedbackAlignment(), "*": lawful.Backprop()})
    learn(net)


def test_what_does_not_come_to_its_end_does_not_use_the_look_up():
    def head(net, h):
        if net.fails:
            raise net.fails
        return h @ net.emb.weight.T

    net = Net(head)
    attached(net)
    with torch.no_grad():
        net.fails = None
        net(TOKENS)
    for net.fails in (ValueError(), KeyboardInterrupt()):
        with pytest.raises(type(net.fails)):
            net(TOKENS)
        (torch.ones(4, 4, requires_grad=True) @ net.fc.weight).sum().backward()  # is not the model's
    net.fails = None
    with pytest.raises(CoverageError):
        learn(net)
    assert not _get_current_function_mode_stack()


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("head", [STRAYS["T"], HARMLESS["the module"]])
def test_parts_that_are_compiled_are_looked_at_as_they_are(head, fullgraph):
    net = Net(head)
    attached(net)
    net.fc.compile(backend="eager", fullgraph=fullgraph)
    if head is STRAYS["T"]:
        with pytest.raises(CoverageError):
            learn(net)
    else:
        for _ in range(2):
            learn(net)


class Attending(nn.Module):
    """torch's attention called by hand, on the weights of layers of one's own."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        b = torch.cat([self.q.bias, self.k.bias, self.v.bias])
        return F.multi_head_attention_forward(
            x, x, x, 4, 2, None, b, None, None, False, 0.0, self.o.weight, self.o.bias, use_separate_proj_weight=True,
            q_proj_weight=self.q.weight, k_proj_weight=self.k.weight, v_proj_weight=self.v.weight,
        )[0]  # fmt: skip


def test_attention_by_hand():
    net = Attending()
    attached(net)
    with pytest.raises(CoverageError, match="multi_head_attention_forward"):
        net(torch.randn(3, 2, 4)).sum().backward()


def test_attention_whose_output_alone_is_fed_back():
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).double()
    attachment = attached(net, {"*in_proj_weight": lawful.Backprop(), "*": lawful.FeedbackAlignment()})
    x = torch.randn(2, 3, 4).double()

    def gradient():
        net.zero_grad()
        net(x).pow(3).sum().backward()
        return net.self_attn.in_proj_weight.grad.clone()

    before = gradient()
    attachment.feedback["self_attn.out_proj.weight"].mul_(2)
    assert not torch.allclose(gradient(), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_look_for_themselves(copied):
    net = Net(_tied)
    attached(net)
    with pytest.raises(CoverageError):
        learn(copied(net))


def _tied(net, h):
    return h @ net.emb.weight.T


def test_training_that_calls_parts_of_the_model_can_be_watched():
    net = Net(_tied)
    attachment = attached(net)
    with attachment.watch_strays():
        loss = _tied(net, net.fc(net.emb(TOKENS))).sum()
    with pytest.raises(CoverageError):
        loss.backward()
    assert not _get_current_function_mode_stack()
