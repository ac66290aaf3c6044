"""lawcheck over every case and every registered rule: no correct rule is accused, and every rule is really tested."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lawful
from cases import MLPS
from lawful.affine.slices import Slices
from lawful.checking import lawcheck
from lawful.conservation.base import tensors
from lawful.conservation.neuron import NeuronLaw, Term
from lawful.conservation.potential import SQUARE
from lawful.rules.direct_base import DirectRule
from lawful.rules.registry import RULES, parse_rule

OPTIONS = {"low-rank-fa": ":rank=2", "sparse-fa": ":density=0.9", "rho-fa": ":rho=0.5"}
LAYERWISE = [name for name in RULES if not isinstance(parse_rule(name + OPTIONS.get(name, "")), DirectRule)]
HOMOGENEOUS = ("relu", "leaky_relu", "identity")


@pytest.mark.parametrize("name", LAYERWISE)
@pytest.mark.parametrize("case", MLPS, ids=str)
def test_no_correct_rule_is_accused(case, name):
    check = lawcheck(case.module(), torch.randn(6, case.widths[0]), rule=parse_rule(name + OPTIONS.get(name, "")))
    assert check.ok and not check.unchecked, check
    assert any(line.what == "gradient" for line in check.table)
    hidden = len(case.widths) - 2 if case.activation in HOMOGENEOUS and name != "sign-fa" else 0
    assert sum(line.where.endswith("(neuron)") for line in check.table) == hidden


@pytest.mark.parametrize("name", [name for name in LAYERWISE if name not in ("bp",)])
def test_a_halved_error_is_noticed_under_every_rule(name):
    """At the last layer, so that the ones before it learn from half of what they should."""
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    lawful.attach(model, parse_rule(name + OPTIONS.get(name, "")))
    model[2].register_full_backward_hook(_half)
    assert not lawcheck(model, torch.randn(6, 4).double()).ok


def _half(module, grad_input, grad_output):
    return tuple(g / 2 for g in grad_input)


class Power(nn.Module):
    def __init__(self, sigma):
        super().__init__()
        self.sigma, self.a, self.b = sigma, nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.sigma(self.a(x)))


DEGREES = {
    "squared ReLU": (2, lambda h: h.relu().square()),
    "square": (2, torch.square),
    "cube": (3, lambda h: h**3),
    "root": (0.5, lambda h: h.abs().sqrt()),
}


@pytest.mark.parametrize("name", ["bp", "fa", "kp", "usf", "frsf"])
@pytest.mark.parametrize("degree", DEGREES)
def test_the_degree_of_an_activation_is_in_its_law(degree, name):
    """½‖W_1[j]‖² + ½b² − k Ψ_j(W_2), measured on the gradients; with any other k it is no law."""
    k, sigma = DEGREES[degree]
    torch.manual_seed(0)
    model = Power(sigma).double()
    attachment = lawful.attach(model, parse_rule(name))
    x = torch.randn(6, 3).double()
    assert lawcheck(model, x).ok
    (law,) = lawful.laws_of(model, x).of_kind("neuron")
    model(x).square().sum().backward()
    theta, v = tensors(model), {n: -p.grad for n, p in model.named_parameters()}
    size = law.magnitude(theta, v).clamp(min=1e-9)  # that of a dead neuron is zero
    assert float((law.rate(theta, v).abs() / size).max()) < 1e-12
    every = torch.arange(4)
    for other, is_law in ((k, True), (k + 1, False), (1 if k != 1 else 2, False)):
        terms = [
            Term(Slices("a.weight", (4, 3), (0,)), SQUARE, 1, every, 4),
            Term(Slices("a.bias", (4,), (0,)), SQUARE, 1, every, 4),
            Term(Slices("b.weight", (2, 4), (1,)), law.potentials[-1], -other, every, 4),
        ]
        rate = NeuronLaw("a", terms, "", ["0", "1", "2", "3"]).rate(theta, v)
        assert bool((rate.abs() / size < 1e-12).all()) == is_law
    assert attachment.attached


class Hooked(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.one, self.two = nn.Linear(3, 8), nn.Linear(4, 2, bias=False), nn.Linear(4, 2)
        self.one.register_full_backward_hook(_look)

    def forward(self, x):
        a, b = self.fc(x).relu().chunk(2, -1)
        return self.one(a), self.two(b)


def _look(module, grad_input, grad_output):
    return None


@pytest.mark.parametrize("name", ["bp", "fa"])
def test_hooks_that_only_look_are_not_accused(name):
    check = lawcheck(Hooked(), torch.randn(5, 3), rule=parse_rule(name))
    assert check.ok and any(line.where == "fc (neuron)" for line in check.table), check
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model[1].register_full_backward_hook(_look)
    check = lawcheck(model, torch.randn(5, 3), rule=parse_rule(name))
    assert check.ok and any(line.where == "0 (neuron)" for line in check.table), check


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * nn.functional.linear(input, self.weight, self.bias)


class Same(nn.Conv1d):
    def forward(self, input):
        return nn.functional.conv1d(input, self.weight, self.bias, self.stride, self.padding)


def test_layers_with_a_forward_pass_of_their_own_have_no_stock_reference():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), Doubled(4, 4), nn.ReLU(), nn.Linear(4, 2))
    check = lawcheck(model, torch.randn(5, 3), rule=lawful.FeedbackAlignment())
    assert check.ok and any("2.weight" in what for what in check.unchecked), check
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), Same(4, 3, 3, 2, 1))
    check = lawcheck(model, torch.randn(5, 2, 9), rule=lawful.FeedbackAlignment())
    assert check.ok and not check.unchecked, check
