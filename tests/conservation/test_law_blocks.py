"""A step read a few rows at a time against the base class, which reads everything at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import lawful
from lawful.affine import slices
from lawful.conservation import blocks, line_norms, neuron
from lawful.conservation.base import Law
from lawful.conservation.combination import Combination, moves
from lawful.conservation.derive import laws_of
from lawful.conservation.neuron import Together


class ByRow(lawful.FeedbackAlignment):
    """B = s_i·sign(W), s one number a row: Ψ is a sum over elements, but a piece of W does not say which row it is."""

    def init(self, weight, generator):
        return {"s": torch.linspace(0.5, 2, len(weight)).to(weight).reshape(-1, *[1] * (weight.dim() - 1))}

    def feedback(self, weight, state):
        return state["s"] * weight.sign()

    def potential(self, weight, state):
        return state["s"] * weight.abs()


RULES = {
    "bp": lawful.Backprop(),
    "fa": lawful.FeedbackAlignment(seed=1),
    "kp": lawful.KolenPollack(seed=1),
    "usf": lawful.UniformSignSymmetry(),
    "frsf": lawful.FixedMagnitudeSignSymmetry(seed=1),
    "by row": ByRow(),
}


def grouped():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 9, 3, groups=3),
        nn.ReLU(),
        nn.ConvTranspose2d(9, 6, 2, groups=3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 5),
        nn.ReLU(),
        nn.Linear(5, 2),
    ).double()


@pytest.mark.parametrize("size", [1, 50, 10**6])
@pytest.mark.parametrize(("large", "compiled"), [(1, False), (10**6, False), (10**6, True)])
@pytest.mark.parametrize("rule", RULES)
def test_blocks_of_any_size_give_the_same_numbers(rule, size, large, compiled, monkeypatch):
    monkeypatch.setattr(neuron, "COMPILED", 1 if compiled else 10**9)
    monkeypatch.setattr(blocks, "BLOCK", size)
    monkeypatch.setattr(slices, "LARGE", large)
    model = grouped()
    lawful.attach(model, RULES[rule])
    model[2].weight.data = model[2].weight.data.to(memory_format=torch.channels_last)
    laws = laws_of(model, torch.zeros(1, 2, 7, 7, dtype=torch.float64)).of_kind("neuron")
    assert len(laws) == 4
    g = torch.Generator().manual_seed(3)
    theta = {n: p.detach() for n, p in model.named_parameters()}
    a, b = ({n: torch.randn(p.shape, generator=g, dtype=p.dtype) for n, p in theta.items()} for _ in range(2))
    delta = {n: -0.5 * a[n] + 0.2 * b[n] for n in theta}
    move = {n: -0.5 * Combination(a[n]) + 0.2 * Combination(b[n]) for n in theta}
    for law, rows in zip(laws, Together(laws).expand(moves(theta), move, [moves(a), {}, move]), strict=True):
        expected = [Law.drift(law, theta, delta), Law.rate(law, theta, a), 0 * rows[0], Law.rate(law, theta, delta)]
        torch.testing.assert_close(rows, torch.stack(expected), rtol=1e-10, atol=1e-11)
        psi = [(term, term.potential.value(theta[term.slices.parameter])) for term in law.terms]
        q = sum(term.by_channel(term.slices.sum(element)) for term, element in psi)
        torch.testing.assert_close(law.value(theta), q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_more(dtype):
    model = nn.Sequential(nn.Linear(3000, 2), nn.ReLU(), nn.Linear(2, 1)).to(dtype)
    (law,) = laws_of(model).of_kind("neuron")
    theta = {n: p.detach() for n, p in model.named_parameters()}
    exact = {n: w.double() for n, w in theta.items()}
    torch.testing.assert_close(law.value(theta), law.value(exact), rtol=1e-12, atol=0)
    error = (law.drift(theta, theta) - law.drift(exact, exact)).abs()
    assert bool((error <= 1e-6 * law.magnitude(exact, exact)).all())  # half precision would be 1e-3


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("rule", ["bp", "fa", "usf"])
def test_the_rate_along_a_small_difference_is_not_a_difference_of_large_rates(rule, compiled, monkeypatch):
    """The step of an optimiser that copies, W − W_before, is exact in float32; ⟨B, W⟩ − ⟨B, W_before⟩ is noise."""
    monkeypatch.setattr(neuron, "COMPILED", 1 if compiled else 10**9)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 30), nn.ReLU(), nn.Linear(30, 4))
    lawful.attach(model, RULES[rule])
    (law,) = laws_of(model).of_kind("neuron")
    before = {n: p.detach() for n, p in model.named_parameters()}
    now = {n: w * (1 + 1e-6 * torch.randn_like(w)) for n, w in before.items()}
    step = {n: Combination(now[n]).minus(Combination(before[n])) for n in before}
    found = Together([law]).expand(moves(before), step, [step])[0][1]
    exact = {n: now[n].double() - before[n].double() for n in before}
    wide = {n: w.double() for n, w in before.items()}
    error = (found - law.rate(wide, exact)).abs()
    assert bool((error <= 1e-5 * law.magnitude(wide, exact)).all())


def mlp():
    return nn.Sequential(nn.Linear(5, 18), nn.ReLU(), nn.Linear(18, 17), nn.ReLU(), nn.Linear(17, 3)).double()


class Attention(nn.Module):
    """Its queries, keys and values are rows of one packed parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.m, self.norm = nn.MultiheadAttention(16, 2, batch_first=True), nn.LayerNorm(16)

    def forward(self, x):
        return self.norm(x + self.m(x, x, x)[0])


MODELS = {
    "mlp": (mlp, (1, 5)),
    "grouped": (grouped, (1, 2, 7, 7)),
    "attention": (lambda: Attention().double(), (1, 3, 16)),
}


@pytest.mark.parametrize("rule", ["fa", "bp", "usf", "kp"])
@pytest.mark.parametrize(("block", "compiled"), [(1, False), (1 << 20, False), (1 << 20, True)])
@pytest.mark.parametrize("name", MODELS)
def test_the_drift_that_is_followed_is_that_of_the_definition(name, rule, block, compiled, monkeypatch):
    """For laws of every kind, packed rows, biases, frozen weights, unequal rates, several tensors."""
    monkeypatch.setattr(neuron, "COMPILED", 1 if compiled else 10**9)
    monkeypatch.setattr(line_norms, "BLOCK", block)
    monkeypatch.setattr(slices, "LARGE", 1)
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make()
    if rule != "bp":
        lawful.attach(model, RULES[rule])
    laws = laws_of(model, torch.zeros(shape, dtype=torch.float64))
    assert "matrix" in {law.kind for law in laws} or (name, rule) != ("attention", "bp")
    together = Together(laws)
    theta = {n: p.detach() for n, p in model.named_parameters()}
    x = {n: Combination(torch.randn_like(p)) for n, p in theta.items()}
    equal = {n: -0.3 * v for n, v in x.items()}
    unequal = {n: -0.1 * (k + 1) * v for k, (n, v) in enumerate(x.items())}
    sums = {n: v + 0.5 * Combination(torch.randn_like(theta[n])) for n, v in x.items()}
    frozen = {n: v for n, v in equal.items() if not n.startswith(("2.", "m.in"))}
    steps = (equal, unequal, sums, frozen, {})
    expected = []
    for step in steps:
        delta = {n: step[n].whole() if n in step else torch.zeros_like(theta[n]) for n in theta}
        expected.append(torch.cat([Law.drift(law, theta, delta).reshape(-1) for law in laws]))
        together.follow(moves(theta), step)
        torch.testing.assert_close(together.followed(), expected[-1], rtol=1e-10, atol=1e-11)
    assert not together.followed().any() and bool(expected[0].any())
    for step in steps:
        together.follow(moves(theta), step)
    torch.testing.assert_close(together.followed(), sum(expected), rtol=1e-10, atol=1e-11)


def test_rates_can_be_differentiated_and_mapped(monkeypatch):
    """The sums along lines leave numpy alone where derivatives, or a batch of laws, are asked for."""
    monkeypatch.setattr(slices, "LARGE", 1)
    torch.manual_seed(0)
    model = mlp()
    lawful.attach(model, RULES["kp"])
    law = laws_of(model)[0]
    theta = {n: p.detach() for n, p in model.named_parameters()}
    v = {n: torch.randn_like(p) for n, p in theta.items()}
    w = {n: torch.randn_like(p) for n, p in theta.items()}
    rate = law.rate(theta, w)
    along = {n: x.clone().requires_grad_() for n, x in v.items()}
    found = torch.autograd.grad(law.rate(theta, along).sum(), [along[n] for n in law.parameters])
    inner = sum((g * w[n]).sum() for g, n in zip(found, law.parameters, strict=True))  # the rate is linear in v
    torch.testing.assert_close(inner, rate.sum(), rtol=1e-12, atol=1e-12)
    _, tangent = torch.func.jvp(lambda v: law.rate(theta, v), (v,), (w,))
    torch.testing.assert_close(tangent, rate, rtol=1e-12, atol=1e-12)
    with forward_ad.dual_level():
        duals = {n: forward_ad.make_dual(v[n], w[n]) for n in v}
        torch.testing.assert_close(forward_ad.unpack_dual(law.rate(theta, duals)).tangent, rate, rtol=1e-12, atol=1e-12)
    both = torch.vmap(lambda v: law.rate(theta, v))({n: torch.stack([v[n], w[n]]) for n in v})
    torch.testing.assert_close(both[1], rate, rtol=1e-12, atol=1e-12)
