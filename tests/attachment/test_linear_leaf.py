"""Small linear layers send their error through the weight that autograd saved: everything as with the Function."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, parametrize

import lawful
from cases import MLP
from lawful.attachment import linear_leaf
from lawful.errors import ChangedInPlaceError, DoubleBackwardError

CASE = MLP((3, 6, 5, 2))
RULES = [
    lawful.FeedbackAlignment(),
    lawful.UniformSignSymmetry(),
    lawful.FixedMagnitudeSignSymmetry(),
    lawful.BatchwiseMagnitudeSignSymmetry(),
    lawful.KolenPollack(),
    lawful.SignFeedbackAlignment(),
    lawful.LowRankFeedback(rank=2),
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


@pytest.fixture
def swaps(monkeypatch):
    """How often B was taken for a saved weight."""
    counts = []
    for name in ("_stored", "_made"):
        hook = getattr(linear_leaf, name)

        def counted(*args, hook=hook):
            counts.append(1)
            return hook(*args)

        monkeypatch.setattr(linear_leaf, name, counted)
    return counts


def gradients(model, x):
    x = x.clone().requires_grad_()
    model.zero_grad()
    model(x).square().sum().backward()
    return [x.grad, *(p.grad for p in model.parameters())]


def no_swap(monkeypatch):
    monkeypatch.setattr(linear_leaf, "_PLAIN", ())


class TwiceAsMuch(lawful.FeedbackAlignment):
    def feedback(self, weight, state):
        return 2 * super().feedback(weight, state)


@pytest.mark.parametrize("width", [6, 300])
def test_a_stored_B_is_read_past_the_rule_only_where_the_rule_returns_it_as_it_is(width):
    given = {"0.weight": torch.randn(width, 300), "1.weight": torch.randn(2, width)}
    x, found = torch.randn(4, 300), []
    for rule in (TwiceAsMuch(B=given), lawful.FeedbackAlignment(B={name: 2 * B for name, B in given.items()})):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(300, width), nn.Linear(width, 2))
        lawful.attach(model, rule)
        found.append(gradients(model, x))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)


@every_rule
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_bitwise_those_of_the_function(rule, bias, swaps, monkeypatch):
    model = nn.Sequential(nn.Linear(3, 6, bias=bias), nn.Tanh(), nn.Linear(6, 2, bias=bias))
    lawful.attach(model, rule)
    x = torch.randn(4, 3)
    short = gradients(model, x)
    assert len(swaps) == (0 if rule.name == "sign-fa" else 2)
    no_swap(monkeypatch)
    swaps.clear()
    for ours, theirs in zip(short, gradients(model, x), strict=True):
        assert torch.equal(ours, theirs)
    assert not swaps


def test_an_input_that_needs_no_gradient_makes_no_B(swaps):
    model = CASE.module()
    lawful.attach(model, lawful.FeedbackAlignment())
    model(CASE.batch()).sum().backward()
    assert len(swaps) == 2  # of three layers
    with torch.no_grad():
        model(CASE.batch().requires_grad_())
    assert len(swaps) == 2


@pytest.mark.parametrize("learn", [True, False])
def test_frozen_weights_still_send_the_error(learn):
    model = CASE.module()
    attachment = lawful.attach(model, lawful.FeedbackAlignment())
    B = attachment.feedback["4.weight"]
    last = model[4].requires_grad_(learn)
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    last(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(7, 2, dtype=torch.float64) @ B)


def test_the_graph_may_be_kept_and_is_freed_otherwise():
    model = CASE.module()
    lawful.attach(model, lawful.FeedbackAlignment())
    loss = model(CASE.batch()).square().sum()
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.parameters()))
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@every_rule
@pytest.mark.parametrize("layer", [0, 1])
def test_a_graph_of_gradients_is_refused(rule, layer):
    """Autograd would follow it to W, whatever tensor the hook returns."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    lawful.attach(model, rule)
    for x in (torch.ones(2, 3, requires_grad=True), torch.ones(2, 3)):
        with pytest.raises(DoubleBackwardError, match="remove"):
            torch.autograd.grad(model(x).sum(), model[layer].weight, create_graph=True)


@every_rule
def test_a_weight_changed_before_its_backward_pass_is_named(rule, monkeypatch):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    lawful.attach(model, rule)
    for expected in (ChangedInPlaceError, RuntimeError) if rule.name != "sign-fa" else (RuntimeError,):
        out = model(torch.ones(1, 3)).sum()
        with torch.no_grad():
            model[1].weight.add_(1.0)
        with pytest.raises(expected, match="modified by an inplace operation"):
            out.backward()
        no_swap(monkeypatch)


def test_an_input_changed_in_place_is_still_noticed_by_torch():
    layer = nn.Sequential(nn.Linear(3, 3))
    lawful.attach(layer, lawful.FeedbackAlignment())
    hidden = torch.ones(2, 3, requires_grad=True) * 1.0
    out = layer(hidden).sum()
    hidden.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_where_somebody_else_holds_the_saved_tensors_the_function_is_taken(swaps):
    model = CASE.module()
    lawful.attach(model, lawful.FeedbackAlignment())
    x = CASE.batch()
    expected = gradients(model, x)
    swaps.clear()
    packed = []

    def pack(tensor):
        packed.append(tensor)
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = gradients(model, x)
    assert packed and not swaps
    assert all(map(torch.equal, found, expected))


def test_a_parametrized_weight_or_bias_takes_the_function(swaps):
    class Doubled(nn.Module):
        def forward(self, b):
            return 2 * b

    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    parametrize.register_parametrization(model[1], "bias", Doubled())
    parametrizations.weight_norm(model[0])
    lawful.attach(model, lawful.UniformSignSymmetry())
    x = torch.ones(2, 3, requires_grad=True)
    model(x).sum().backward()
    assert not swaps and x.grad is not None
    torch.testing.assert_close(model[1].parametrizations.bias.original.grad, torch.full((2,), 4.0))


def test_a_large_B_is_swapped_in_only_where_nothing_has_to_be_made(swaps):
    for rule, swapped in ((lawful.FeedbackAlignment(), 1), (lawful.KolenPollack(), 0)):
        model = nn.Sequential(nn.Linear(300, 300))
        lawful.attach(model, rule)
        swaps.clear()
        model(torch.ones(1, 300, requires_grad=True)).sum().backward()
        assert len(swaps) == swapped


def test_a_B_changed_before_its_backward_pass_is_named():
    model = nn.Sequential(nn.Linear(3, 3))
    attachment = lawful.attach(model, lawful.FeedbackAlignment())
    out = model(torch.ones(2, 3, requires_grad=True)).sum()
    attachment.feedback["0.weight"].mul_(2)
    with pytest.raises(ChangedInPlaceError, match="feedback"):
        out.backward()


def test_forward_over_reverse_is_refused_and_gives_no_wrong_second_derivative():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    lawful.attach(model, lawful.FeedbackAlignment())
    parameters = dict(model.named_parameters())
    with forward_ad.dual_level(), pytest.raises((NotImplementedError, RuntimeError)):
        duals = {k: forward_ad.make_dual(p, torch.ones_like(p)) for k, p in parameters.items()}
        out = torch.func.functional_call(model, duals, (torch.ones(2, 3),)).square().sum()
        torch.autograd.grad(out, parameters["0.weight"])


def test_an_input_that_escaped_a_transform_still_sends_its_error_through_B():
    model = nn.Sequential(nn.Linear(3, 3))
    attachment = lawful.attach(model, lawful.FeedbackAlignment())
    x, kept = torch.ones(2, 3, requires_grad=True), []

    def product(w):
        kept.append(x * 2)
        return (x * w).sum()

    torch.func.grad(product)(torch.ones(3))
    model(kept[0]).sum().backward()
    torch.testing.assert_close(x.grad, 2 * torch.ones(2, 3) @ attachment.feedback["0.weight"])
