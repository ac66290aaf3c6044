"""What the eps of a norm adds to the scale laws in front of it, against finite differences of the norm itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lawful.conservation.derive import laws_of
from lawful.conservation.norm_calls import amounts_of

EPS = 0.3
G = torch.Generator().manual_seed(0)
IMAGES = torch.randn(3, 2, 5, 5, generator=G, dtype=torch.float64)
ROWS = torch.randn(4, 3, 5, generator=G, dtype=torch.float64)


class OwnRMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)


class OwnLayerNorm2d(nn.Module):
    """Over the channels, on axis 1."""

    def __init__(self, size):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, x):
        z = x - x.mean(1, keepdim=True)
        z = z / (z.square().mean(1, keepdim=True) + EPS).sqrt()
        return self.weight[:, None, None] * z + self.bias[:, None, None]


class Hidden(torch.autograd.Function):
    """A layer norm whose backward pass is written by hand."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.layer_norm(x, x.shape[-1:], eps=EPS).reshape(-1, *x.shape[1:])

    @staticmethod
    def backward(ctx, delta):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(F.layer_norm(x, x.shape[-1:], eps=EPS), x, delta)


class OwnFunction(nn.Module):
    def forward(self, x):
        return Hidden.apply(x)


NORMS = {
    "layer": (lambda: nn.LayerNorm(6, EPS), ROWS),
    "layer over positions": (lambda: nn.LayerNorm((3, 6), EPS), ROWS),
    "RMS": (lambda: nn.RMSNorm(6, EPS), ROWS),
    "group of vectors": (lambda: nn.GroupNorm(2, 6, EPS), ROWS[0]),
    "group": (lambda: nn.GroupNorm(2, 6, EPS), IMAGES),
    "batch of vectors": (lambda: nn.BatchNorm1d(6, EPS), ROWS[0]),
    "batch": (lambda: nn.BatchNorm2d(6, EPS), IMAGES),
    "instance": (lambda: nn.InstanceNorm2d(6, EPS, affine=True), IMAGES),
    "own RMS": (lambda: OwnRMSNorm(6), ROWS),
    "own layer on axis 1": (lambda: OwnLayerNorm2d(6), IMAGES),
    "own function": (OwnFunction, ROWS),
}


def prepared(name):
    make, x = NORMS[name]
    torch.manual_seed(0)
    first = nn.Conv2d(2, 6, 2) if x is IMAGES else nn.Linear(5, 6)
    model = nn.Sequential(first, make()).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p))
    return model, x


@pytest.mark.parametrize("name", NORMS)
def test_the_eps_term_against_finite_differences(name):
    """⟨∇q, g⟩ summed over a law's numbers is d/dt of ⟨δ, norm((1 + t)h)⟩: every writer of h scaled together."""
    model, x = prepared(name)
    (law,) = laws_of(model, x, identity=True).of_kind("scale")  # trusting what Functions say
    assert law.eps == pytest.approx(EPS, rel=1e-12)
    calls = {share.call for share in law.norms}
    with amounts_of(model, calls) as heard:
        y = model(x)
        amounts = heard(y)
    error = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y.backward(error)
    got = law.eps_rate(amounts)
    theta = {n: p.detach() for n, p in model.named_parameters()}
    rate = law.rate(theta, {n: p.grad for n, p in model.named_parameters()})
    torch.testing.assert_close(got, rate, rtol=1e-11, atol=1e-13)
    h, t = model[0](x).detach(), 1e-4
    with torch.no_grad():
        after, before = ((error * model[1]((1 + s) * h)).sum() for s in (t, -t))
    assert float(got.sum()) == pytest.approx(float(after - before) / (2 * t), rel=1e-6)
    assert float(got.abs().min()) > 1e-4
    assert len(got) == {"batch": 6, "batch of vectors": 6, "instance": 6, "group": 2, "group of vectors": 2}.get(
        name, 1
    )


def test_several_norms_that_read_one_stream_add_up():
    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.o = nn.Linear(5, 6), nn.Linear(6, 2)
            self.n1, self.n2 = nn.LayerNorm(6, 0.1), nn.RMSNorm(6, 0.7)
            self.a, self.b = nn.Linear(6, 7), nn.Linear(7, 6)

        def forward(self, x):
            h = self.i(x)
            return self.o(self.n2(h + self.b(F.relu(self.a(self.n1(h))))))

    torch.manual_seed(0)
    model = Stream().double()
    (law,) = laws_of(model, ROWS).of_kind("scale")
    assert sorted((share.call.module, share.coefficient) for share in law.norms) == [("n1", 1.0), ("n2", 1.0)]
    with amounts_of(model, [share.call for share in law.norms]) as heard:
        y = model(ROWS)
        amounts = heard(y)
    y.backward(torch.randn_like(y))
    theta = {n: p.detach() for n, p in model.named_parameters()}
    rate = law.rate(theta, {n: p.grad for n, p in model.named_parameters()})
    torch.testing.assert_close(law.eps_rate(amounts), rate, rtol=1e-11, atol=1e-13)


def test_a_norm_that_is_called_twice_is_two_norms():
    model, x = prepared("layer")
    model.append(nn.Linear(6, 6).double()).append(model[1])
    laws = {law.name: law for law in laws_of(model, x).of_kind("scale")}
    assert {name: [share.call.turn for share in law.norms] for name, law in laws.items()} == {"0": [0], "2": [1]}
