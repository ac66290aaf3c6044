"""In front of norms: scales per stream and per group, shifts per part, and what padding and moved channels break."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from law_rates import Flow
from torch import nn

import lawful
from lawful.conservation.derive import laws_of

X = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
S = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class GroupStream(nn.Module):
    """A residual stream read by two group norms, of 2 groups and of ``groups``."""

    def __init__(self, groups=2):
        super().__init__()
        self.i, self.o = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.n1, self.n2 = nn.GroupNorm(2, 4), nn.GroupNorm(groups, 4)
        self.c1, self.c2 = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x):
        h = self.i(x)
        h = h + self.c2(F.relu(self.c1(self.n1(h))))
        return self.o(self.n2(h))


class Heads(nn.Module):
    """Attention whose queries and keys are normed per head."""

    def __init__(self, norm):
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 3)
        self.qn, self.kn = norm(4), norm(4)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (2, 4)) for f in (self.q, self.k, self.v))
        q, k, v = (y.transpose(1, 2) for y in (self.qn(q), self.kn(k), v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class OwnRMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(size) + 0.5), 1e-6

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class OwnLayerNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.rand(size) + 0.5), nn.Parameter(torch.randn(size)), 1e-6

    def forward(self, x):
        z = x - x.mean(-1, keepdim=True)
        return self.weight * z / (z.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() + self.bias


class OwnLayerNorm2d(OwnLayerNorm):
    """Over the channels, on axis 1, as networks of convolutions have it."""

    def forward(self, x):
        z = x - x.mean(1, keepdim=True)
        z = z / (z.pow(2).mean(1, keepdim=True) + self.eps).sqrt()
        return self.weight[:, None, None] * z + self.bias[:, None, None]


class LayerScale(nn.Module):
    """γ[:, None, None] ⊙ x + β[:, None, None], between two layers: a layer of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 3)
        self.gamma, self.beta = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x):
        return self.b(F.relu(self.a(x) * self.gamma[:, None, None] + self.beta))


class OwnOddNorm(OwnLayerNorm):
    """Divides by the sample standard deviation plus ε: no layer norm."""

    def forward(self, x):
        return self.weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + self.eps) + self.bias


class Shifted(nn.Module):
    """Channels that change places along the sequence before a layer norm."""

    def __init__(self, how):
        super().__init__()
        self.a, self.n, self.o, self.how = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 2), how

    def forward(self, x):
        return self.o(self.n(self.how(self.a(x))))


def conv(norm, *before):
    return nn.Sequential(nn.Conv2d(2, 4, 3), *before, norm, nn.ReLU(), nn.Conv2d(4, 2, 3))


def linear(norm):
    return nn.Sequential(nn.Linear(5, 6), norm, nn.ReLU(), nn.Linear(6, 2))


MODELS = {
    "group norm": (lambda: conv(nn.GroupNorm(2, 4)), X, {"scale": 2, "shift": 2, "neuron": 4}),
    "group norm of one group": (lambda: conv(nn.GroupNorm(1, 4)), X, {"scale": 1, "shift": 1, "neuron": 4}),
    "group norm by channel": (lambda: conv(nn.GroupNorm(4, 4)), X, {"scale": 4, "shift": 4, "neuron": 4}),
    "group norm after relu": (lambda: conv(nn.GroupNorm(2, 4), nn.ReLU()), X, {"scale": 2, "neuron": 4}),
    "group norm of vectors": (lambda: linear(nn.GroupNorm(2, 6)), S[0], {"scale": 2, "shift": 12, "neuron": 6}),
    "group norms on a stream": (GroupStream, X, {"scale": 2, "shift": 4, "neuron": 14}),
    "nested group norms": (lambda: GroupStream(4), X, {"scale": 2, "shift": 6, "neuron": 14}),
    "instance norm": (lambda: conv(nn.InstanceNorm2d(4, affine=True)), X, {"scale": 4, "shift": 4, "neuron": 4}),
    "layer norm over positions": (lambda: conv(nn.LayerNorm((4, 6, 6))), X, {"scale": 1, "shift": 1}),
    "layer norm": (lambda: linear(nn.LayerNorm(6)), S, {"scale": 1, "shift": 6, "neuron": 6}),
    "RMS norm": (lambda: linear(nn.RMSNorm(6)), S, {"scale": 1, "neuron": 6}),
    "own RMS norm": (lambda: linear(OwnRMSNorm(6)), S, {"scale": 1, "neuron": 6}),
    "own layer norm": (lambda: linear(OwnLayerNorm(6)), S, {"scale": 1, "shift": 6, "neuron": 6}),
    "own norm of channels": (lambda: conv(OwnLayerNorm2d(4)), X, {"scale": 1, "shift": 19, "neuron": 4}),
    "layer scale": (LayerScale, X, {"neuron": 8}),
    "own odd norm": (lambda: linear(OwnOddNorm(6)), S, {"neuron": 6}),
    "layer norm per head": (lambda: Heads(nn.LayerNorm), S, {"scale": 4, "shift": 28, "neuron": 12}),
    "RMS norm per head": (lambda: Heads(nn.RMSNorm), S, {"scale": 4, "neuron": 12}),
    "padded batch norm": (lambda: conv(nn.BatchNorm2d(4), nn.ZeroPad2d(1)), X, {"scale": 4, "neuron": 4}),
    "padded group norm": (lambda: conv(nn.GroupNorm(2, 4), nn.ZeroPad2d(1)), X, {"scale": 2, "neuron": 4}),
    "pooled batch norm": (
        lambda: conv(nn.BatchNorm2d(4), nn.AvgPool2d(2, 1)),
        X,
        {"scale": 4, "shift": 4, "neuron": 4},
    ),
    "pooled and padded": (lambda: conv(nn.BatchNorm2d(4), nn.AvgPool2d(3, 1, 1)), X, {"scale": 4, "neuron": 4}),
    "rolled": (lambda: Shifted(lambda h: h.roll(1, 1)), S, {"scale": 1, "shift": 6, "neuron": 6}),
    "partly rolled": (
        lambda: Shifted(lambda h: torch.cat([h[..., :3].roll(1, 1), h[..., 3:]], -1)),
        S,
        {"scale": 1, "shift": 1, "neuron": 6},
    ),
    "partly padded": (
        lambda: Shifted(lambda h: torch.cat([F.pad(h[:, :-1, :3], (0, 0, 1, 0)), h[..., 3:]], -1)),
        S,
        {"scale": 1, "neuron": 6},
    ),
}


@pytest.mark.parametrize("rule", ["fa", "weight mirror", "backprop"])
@pytest.mark.parametrize("name", MODELS)
def test_laws_and_their_rates(name, rule):
    make, x, expected = MODELS[name]
    lawful.register(OwnRMSNorm, elementwise=["weight"])
    lawful.register(OwnLayerNorm, elementwise=["weight"], added=["bias"])
    for norm in (OwnLayerNorm2d, OwnOddNorm):
        lawful.register(norm, elementwise=["weight"], added=["bias"])
    lawful.register(LayerScale, elementwise=["gamma"], added=["beta"])
    flow = Flow(make(), x, rule)
    count = {kind: sum(len(law.names) for law in flow.laws.of_kind(kind)) for kind in ("scale", "shift", "neuron")}
    assert {kind: n for kind, n in count.items() if n} == expected
    assert flow.worst() < 1e-10


def test_a_group_norm_by_hand():
    """Per group Σ_j ½(‖W[j]‖² + b_j²) and Σ_j b_j; not a channel's b, not Σ_j W[j], not one writer of a stream."""
    flow = Flow(GroupStream(), X)
    theta, g = flow.theta, flow.g
    value = sum(
        (theta[f"{m}.weight"].square().sum((1, 2, 3)) + theta[f"{m}.bias"].square()).reshape(2, 2).sum(1) / 2
        for m in ("i", "c2")
    )
    (law,) = flow.laws.of_kind("scale")
    torch.testing.assert_close(law.value(theta), value)
    assert law.names == ["i + c2 · group 0", "i + c2 · group 1"]
    products = {m: (theta[f"{m}.weight"] * g[f"{m}.weight"]).sum((1, 2, 3)) for m in ("i", "c2")}
    products = {m: (p + theta[f"{m}.bias"] * g[f"{m}.bias"]).reshape(2, 2) for m, p in products.items()}
    both = products["i"] + products["c2"]
    assert flow.relative(both.sum(1), both.abs().sum(1)) < 1e-10
    assert flow.relative(both.sum().reshape(1), both.abs().sum().reshape(1)) < 1e-10
    assert flow.relative(both[:, 0], both.abs().sum(1)) > 1e-6  # not a channel
    assert flow.relative(products["i"].sum(1), products["i"].abs().sum(1)) > 1e-6  # not a writer
    bias = g["c2.bias"].reshape(2, 2)
    assert flow.relative(bias.sum(1), bias.abs().sum(1)) < 1e-10
    assert flow.relative(bias[:, 0], bias.abs().sum(1)) > 1e-6
    weight = g["c2.weight"].reshape(2, 2, -1)
    assert flow.relative(weight.sum(1), weight.abs().sum(1)) > 1e-6


@pytest.mark.parametrize("kind", ["layer", "RMS", "group"])
def test_the_exact_eps_term(kind):
    """Σ ⟨W, Ẇ⟩ + bḃ = −Σ_n ε/(v_n + ε) Σ_j δ_nj γ_j x̂_nj, n over what a norm takes together, at an eps of 0.3."""
    torch.manual_seed(0)
    eps, x = 0.3, torch.randn(7, 5, dtype=torch.float64)
    norm = {"layer": nn.LayerNorm(6, eps), "RMS": nn.RMSNorm(6, eps), "group": nn.GroupNorm(2, 6, eps)}[kind]
    model = nn.Sequential(nn.Linear(5, 6), norm).double()
    with torch.no_grad():
        for p in norm.parameters():
            p.copy_(torch.randn_like(p))
    h = model[0](x).detach()
    rows = h.reshape(7, 2, 3) if kind == "group" else h.reshape(7, 1, 6)
    z = rows if kind == "RMS" else rows - rows.mean(-1, keepdim=True)
    v = z.square().mean(-1, keepdim=True)
    error = torch.randn(7, 6, dtype=torch.float64)
    model(x).backward(error)
    term = (eps / (v + eps) * (error * norm.weight.detach()).reshape(z.shape) * z / (v + eps).sqrt()).sum((0, 2))
    (law,) = laws_of(model, x).of_kind("scale")
    theta, g = ({n: f(p) for n, p in model.named_parameters()} for f in (lambda p: p.detach(), lambda p: p.grad))
    torch.testing.assert_close(law.rate(theta, g), term, rtol=1e-10, atol=1e-12)
    assert law.eps == eps and float(term.abs().min()) > 1e-6


def test_padding_and_moved_channels_break_shifts():
    for before in (nn.ZeroPad2d(1), nn.AvgPool2d(3, 1, 1)):
        flow = Flow(conv(nn.BatchNorm2d(4), before), X)
        assert flow.relative(flow.g["0.bias"], flow.g["0.weight"].abs().max()) > 1e-6
    flow = Flow(MODELS["partly rolled"][0](), S)
    assert flow.relative(flow.g["a.weight"].sum(0), flow.g["a.weight"].abs().sum(0)) > 1e-6


def test_instance_norm_with_running_statistics_has_no_law_of_w():
    model = conv(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)).eval()
    assert {law.name for law in laws_of(model, X.float())} == {"1"}


def test_a_stream_that_is_also_an_output_has_no_shift():
    class Both(Shifted):
        def forward(self, x):
            h = self.a(x)
            return torch.cat([h, self.o(self.n(h))], -1)

    assert not laws_of(Both(None), S.float()).of_kind("shift", "scale")


def test_two_writers_that_a_norm_reads_together_share_a_scale_and_have_no_shift_of_their_own():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.n, self.o = nn.Linear(5, 4), nn.Linear(5, 2), nn.LayerNorm(6), nn.Linear(6, 2)

        def forward(self, x):
            return self.o(self.n(torch.cat([self.a(x), self.b(x)], -1)))

    flow = Flow(Two(), S)
    assert [law.name for law in flow.laws.of_kind("scale")] == ["a + b"] and flow.worst() < 1e-10
    assert not flow.laws.of_kind("shift")
    assert flow.relative(flow.g["a.weight"].sum(0), flow.g["a.weight"].abs().sum(0)) > 1e-6


def test_names_of_shift_laws_say_which_entry():
    batch = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    every = laws_of(batch, torch.randn(4, 2), output="softmax").of_kind("shift")
    assert [name for law in every for name in law.names] == [
        *(f"0 · 0.bias[{j}]" for j in range(3)),
        *(f"2 · Σ_j 2.weight[j], entry {i}" for i in range(3)),
        "2 · Σ_j 2.bias[j]",
    ]
    groups = nn.Sequential(nn.Conv1d(1, 4, 1), nn.GroupNorm(2, 4))
    (bias,) = laws_of(groups, torch.randn(2, 1, 5)).of_kind("shift")  # δ sums to zero over channels and positions
    assert bias.names == ["0 · Σ_j 0.bias[j] from j = 0", "0 · Σ_j 0.bias[j] from j = 2"]
