"""Paths around a tapped block are seen and named; so is everything that would leave a block untaught."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import lawful
from lawful.errors import AttachmentError, CoverageError, DoubleBackwardError, SettingError


class Residual(nn.Module):
    """x + MLP(x) behind a stem: tapping the MLP leaves the residual path open."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.mlp = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.mlp(x))


def test_a_residual_path_is_named():
    model = Residual()
    attachment = lawful.attach(model, lawful.DirectFeedbackAlignment(taps=["mlp"]))
    with pytest.raises(CoverageError, match="leak around tapped mlp .* to stem.weight, stem.bias"):
        model(torch.randn(2, 3))
    attachment.remove()
    attachment = lawful.attach(model, lawful.DirectFeedbackAlignment(taps=["mlp"]), strict=False)
    model(torch.randn(2, 3))
    assert attachment.coverage["stem.weight"].startswith("NOT COVERED: backpropagated error reaches it around mlp")
    assert attachment.coverage["mlp.0.weight"].startswith("taught by the signal at mlp")
    attachment.remove()
    attachment = lawful.attach(model, lawful.DirectFeedbackAlignment(taps=["stem", "mlp"]))
    model(torch.randn(2, 3))  # the stem's own tap closes the path
    assert not any("NOT COVERED" in sentence for sentence in attachment.coverage.values())


def test_a_path_is_seen_also_where_parameters_are_given_from_outside():
    model = Residual()
    lawful.attach(model, lawful.DirectFeedbackAlignment(taps=["mlp"]))
    given = {name: nn.Parameter(p.detach().clone()) for name, p in model.named_parameters()}
    with pytest.raises(CoverageError, match="leak around tapped mlp"):
        torch.func.functional_call(model, given, (torch.randn(2, 3),))


def test_every_gradient_comes_from_its_teacher_alone():
    """What the audit says is what happens: a zero D silences exactly the parameters that it names."""
    model = Residual()
    attachment = lawful.attach(model, lawful.DirectFeedbackAlignment(taps=["stem", "mlp"]))
    model(torch.randn(2, 3))
    attachment.feedback["stem"].zero_()
    model(torch.randn(2, 3)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad == 0).all() == ("the signal at stem" in attachment.coverage[name])


class Odd(nn.Module):
    """Uses its blocks in whichever way the test asks for."""

    def __init__(self, way):
        super().__init__()
        self.one = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        self.two = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        self.head = nn.Linear(3, 2)
        self.way = way

    def forward(self, x):
        return self.way(self, x)


RULE = lawful.DirectFeedbackAlignment(taps=["one", "two"], output="head")


def reentrant(m, x):
    return m.head(checkpoint(m.two, m.one(x).requires_grad_(), use_reentrant=True))


@pytest.mark.parametrize(
    ("way", "message"),
    [
        (lambda m, x: m.two(m.head(x).repeat(1, 2)[:, :3]), "'two' ran after the last call of the output 'head'"),
        (lambda m, x: m.two(m.one(x)), "'one' ran after the last call of the output 'head'"),
        (reentrant, "'two' ran without grad .* use_reentrant=False"),
    ],
    ids=["after the output", "no output", "reentrant checkpoint"],
)
def test_untaught_blocks_raise(way, message):
    model = Odd(way)
    lawful.attach(model, RULE)
    with pytest.raises(AttachmentError, match=message):
        model(torch.randn(2, 3))


def test_a_block_outside_the_model_raises():
    model = Odd(lambda m, x: m.head(m.two(m.one(x))))
    attachment = lawful.attach(model, RULE)
    with pytest.raises(AttachmentError, match="'one' ran outside a call of the model"):
        model.one(torch.randn(2, 3))
    with torch.no_grad():
        model.one(torch.randn(2, 3))
    attachment.remove()
    model.one(torch.randn(2, 3))


def test_second_derivatives_and_forward_mode_raise():
    model = Odd(lambda m, x: m.head(m.two(m.one(x))))
    lawful.attach(model, RULE)
    (gradient,) = torch.autograd.grad(model(torch.randn(2, 3)).sum(), model.one[0].weight, create_graph=True)
    with pytest.raises(DoubleBackwardError):
        gradient.sum().backward()
    with pytest.raises(AttachmentError, match="forward-mode"):
        torch.func.jvp(model, (torch.randn(2, 3),), (torch.randn(2, 3),))


def test_shapes_must_agree_and_stay():
    model = Odd(lambda m, x: m.head(m.two(m.one(x)).sum(0)))
    lawful.attach(model, RULE)
    with pytest.raises(SettingError, match=r"tap 'one' returns shape \(4, 3\) and the output 'head' \(2,\)"):
        model(torch.randn(4, 3))
    model = Odd(lambda m, x: m.head(m.two(m.one(x)).sum(1)))
    lawful.attach(model, RULE)
    model(torch.randn(2, 5, 3))
    with pytest.raises(AttachmentError, match=r"has shape \(2, 15\), but block and logits now need \(2, 12\)"):
        model(torch.randn(2, 4, 3))


def test_a_shared_activation_gets_one_projection_a_call():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 4), relu, nn.Linear(4, 5), relu, nn.Linear(5, 2))
    attachment = lawful.attach(model, lawful.DirectFeedbackAlignment(taps=["1"]))
    model(torch.randn(2, 3))
    assert {tap: tuple(D.shape) for tap, D in attachment.feedback.items()} == {"1": (2, 4), "1#1": (2, 5)}


class Skipping(nn.Module):
    """A block that is given a list, as in a DenseNet or a U-Net; with the list its inputs go on past it."""

    def __init__(self, leaks):
        super().__init__()
        self.stem, self.block, self.head, self.leaks = nn.Linear(3, 4), Joined(), nn.Linear(4, 2), leaks

    def forward(self, x):
        h = self.stem(x)
        y = self.block([h, h.relu()])
        return self.head(y + h if self.leaks else y)


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, parts):
        return self.fc(torch.cat(parts, -1)).tanh()


@pytest.mark.parametrize("leaks", [True, False])
def test_a_path_around_a_block_that_is_given_a_list(leaks):
    model = Skipping(leaks)
    attachment = lawful.attach(model, lawful.DirectFeedbackAlignment(taps=["block"]), strict=False)
    model(torch.randn(2, 3))
    assert attachment.coverage["stem.weight"].startswith("NOT COVERED: backpropagated error reaches it") == leaks
