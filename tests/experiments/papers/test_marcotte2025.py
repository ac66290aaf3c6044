"""Laws of convolutions, attention and residual blocks: found, and moved by finite steps alone."""

from dataclasses import replace

import pytest
import torch

from lawful.errors import DivergenceError, SettingError
from lawful.experiments.paper import SilentProgress
from lawful.experiments.papers import load_paper
from lawful.experiments.papers.marcotte2025 import STUDIES, AttentionLayer, ConvolutionalBlock, Settings, run
from lawful.rules.backprop import Backprop

SMALL = Settings(n=16, steps=16, seeds=1)


@pytest.mark.parametrize("change", [{"n": 1}, {"lr": 0.0}, {"steps": 3}, {"seeds": 0}])
def test_settings_refuse_in_one_line(change):
    with pytest.raises(SettingError) as caught:
        replace(SMALL, **change).validate()
    assert next(iter(change)) in str(caught.value) and "\n" not in str(caught.value)


def rates(model, x, quantity):
    """d/dt of a quantity of the parameters along −gradient, by autograd alone."""
    model(x).square().sum().backward()
    theta = {name: p.detach() for name, p in model.named_parameters()}
    v = {name: -p.grad for name, p in model.named_parameters()}
    return torch.func.jvp(quantity, (theta,), (v,))[1]


def test_the_formulas_stated_are_conserved_by_autograd():
    torch.manual_seed(0)
    conv = ConvolutionalBlock().double()
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    rate = rates(conv, x, lambda w: (w["conv1.weight"] ** 2).sum((1, 2, 3)) - (w["conv2.weight"] ** 2).sum((0, 2, 3)))
    assert rate.shape == (5,) and float(rate.abs().max()) < 1e-12
    layer = AttentionLayer().double()

    def heads(w):
        q, k, v, o = w["query.weight"], w["key.weight"], w["value.weight"], w["out.weight"]
        both = [q @ q.T - k @ k.T, v @ v.T - o.T @ o]
        return torch.stack([m[s : s + 4, s : s + 4] for m in both for s in (0, 4)])

    rate = rates(layer, torch.randn(2, 4, 6, dtype=torch.float64), heads)
    assert rate.shape == (4, 4, 4) and float(rate.abs().max()) < 1e-12


@pytest.mark.parametrize("key", STUDIES)
def test_as_many_laws_as_the_theorems_say(key):
    found = run(STUDIES[key], Backprop(), SMALL, 0, 0, 1)
    assert len(found.names) == STUDIES[key].count
    assert found.drift[0] == 0 and found.drift[-1] > 1e-8, "finite steps do move the laws"


@pytest.mark.parametrize("stage", ["conv", "attention", "skip"])
def test_every_claim_holds_at_another_seed(stage):
    found = load_paper("marcotte2025").stages[stage](SMALL, 4, SilentProgress())
    assert found.claims and not [claim for claim in found.claims if not claim.ok]


def test_a_learning_rate_that_diverges_is_named():
    with pytest.raises(DivergenceError, match="smaller lr"):
        load_paper("marcotte2025").stages["conv"](replace(SMALL, lr=1e9), 0, SilentProgress())
