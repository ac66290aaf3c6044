"""Code that the derivation does not follow, or follows only in part, ends laws: it never makes wrong ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lawful
from lawful.checking import lawcheck
from lawful.conservation.base import tensors
from lawful.conservation.derive import laws_of
from lawful.conservation.structural import spelled

Forward = Callable[["Net", torch.Tensor], torch.Tensor]


class Net(nn.Module):
    def __init__(self, run: Forward) -> None:
        super().__init__()
        self.run = run
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.W, self.g = nn.Parameter(0.5 * torch.randn(6, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self, x)


class Stopped(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input.detach(), self.weight, self.bias)


def overwritten(net: Net, x: torch.Tensor) -> torch.Tensor:
    h = net.a(x).relu().clone()
    h[:, :3] = 1.0
    return net.c(h)


def channel_copied(net: Net, x: torch.Tensor) -> torch.Tensor:
    h = net.a(x).relu().clone()
    h[:, 0] = h[:, 1]
    return net.c(h)


def without_graph(net: Net, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        h = net.a(x).relu()
    return net.c(net.b(h).relu())


def viewed_without_graph(view: Callable[[torch.Tensor], torch.Tensor]) -> Forward:
    """A view that is taken under no_grad says that it requires a gradient, and none comes back through it."""

    def run(net: Net, x: torch.Tensor) -> torch.Tensor:
        h = net.a(x).relu()
        with torch.no_grad():
            W, g, bias, k = view(net.b.weight), net.g[:], net.b.bias[:], view(h)
        return net.c(F.linear(h, W, net.b.bias).relu() * g + F.linear(h, net.W, bias) + k)

    return run


def checkpointed(net: Net, x: torch.Tensor) -> torch.Tensor:
    from torch.utils.checkpoint import checkpoint

    h = checkpoint(lambda t: net.b(t).relu(), net.a(x).relu(), use_reentrant=True)
    assert isinstance(h, torch.Tensor)
    return net.c(h)


def half_moved(net: Net, x: torch.Tensor) -> torch.Tensor:
    h = net.a(x)
    return torch.cat([h[:, :3].roll(1, 0), h[:, 3:]], -1)


def norm_input(x: torch.Tensor) -> torch.Tensor:
    return x[:, :1] * torch.arange(6.0, dtype=x.dtype)


PARTLY_FOLLOWED: dict[str, Forward] = {
    "overwritten by a constant": overwritten,
    "overwritten by another channel": channel_copied,
    "2 ** x": lambda net, x: net.c(2 ** net.a(x)),
    "a power by activations": lambda net, x: net.c((x[:, :1].abs() + 1) ** net.a(x).relu()),
    "clamped by activations": lambda net, x: net.c(torch.clamp(norm_input(x), max=net.a(x).relu())),
    "rounded division": lambda net, x: net.c(torch.div(10 * net.a(x), 2, rounding_mode="floor")),
    "integers": lambda net, x: net.c((10 * net.a(x)).long().to(x.dtype)),
    "no graph": without_graph,
    "views without a graph": viewed_without_graph(lambda w: w.view(w.shape)),
    "slices without a graph": viewed_without_graph(lambda w: w[:]),
    "copies without a graph": viewed_without_graph(lambda w: w * 1),
    "reentrant checkpoint": checkpointed,
    "lookup of activations": lambda net, x: net.c(F.embedding(torch.tensor([0, 2, 2]), net.a(x).relu())),
    "computed γ": lambda net, x: net.c(F.layer_norm(norm_input(x), (6,), net.a(x[:1])[0].relu())),
    "computed bias": lambda net, x: net.c(F.linear(net.b(norm_input(x)), net.W, net.a(x[:1])[0].relu())),
    "computed slope": lambda net, x: net.c(F.prelu(norm_input(x) - 1, net.a(x[:1])[0].relu())),
    "weight used twice": lambda net, x: net.c(F.linear(net.a(x).relu(), net.W).relu()) * net.W.mean(),
    "scale used twice": lambda net, x: net.c(net.a(x).relu() * net.g) * net.g.exp().sum(),
    "half moved, negated": lambda net, x: net.c(-half_moved(net, x)),
    "half moved, scaled": lambda net, x: net.c(half_moved(net, x) * 0.5),
    "half moved, divided": lambda net, x: net.c(half_moved(net, x) / 2),
    "half moved, added": lambda net, x: net.c(half_moved(net, x) + net.b(x[:, :1] * torch.ones(6).double())),
    "half moved, mixed": lambda net, x: net.c((x @ x.T).softmax(-1) @ half_moved(net, x)),
    "half moved, scored": lambda net, x: net.c((half_moved(net, x) @ net.b(norm_input(x)).T) @ norm_input(x)),
    "a bias that is a scale": lambda net, x: net.c(F.linear(net.a(x).relu(), net.W, net.g) * net.g),
    "row of a weight": lambda net, x: net.c(F.linear(net.a(x).relu(), net.W).relu() * net.W[0]),
}


def violations(net: Net, x: torch.Tensor) -> dict[str, float]:
    """Formula -> its rate at other weights, relative; the reference is autograd."""
    laws = laws_of(net, x).of_kind("neuron", "matrix", "bias", "range")
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.5 * torch.randn_like(p))
    net.zero_grad()
    y = net(x)
    y.backward(torch.randn_like(y))
    named = dict(net.named_parameters())
    velocity = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named.items()}
    theta = tensors(net)
    return {
        law.formula: float(law.rate(theta, velocity).abs().max() / (law.magnitude(theta, velocity).max() + 1e-12))
        for law in laws
    }


def made(run: Forward) -> tuple[Net, torch.Tensor]:
    torch.manual_seed(0)
    return Net(run).double(), torch.randn(7, 5, dtype=torch.float64)


@pytest.mark.parametrize("name", PARTLY_FOLLOWED)
def test_no_law_is_wrong(name: str) -> None:
    net, x = made(PARTLY_FOLLOWED[name])
    assert all(rate < 1e-9 for rate in violations(net, x).values())
    check = lawcheck(net, x)
    assert check.ok or check.worst is None


def test_a_buffer_that_is_filled_carries_the_channels() -> None:
    def run(net: Net, x: torch.Tensor) -> torch.Tensor:
        h = net.a(x).relu()
        z = torch.zeros_like(h)
        first = x[:, 0] > 0
        z[first] = net.b(h[first]).relu()
        return net.c(z)

    found = violations(*made(run))
    assert list(found) == [
        "½‖a.weight[j]‖² + ½‖a.bias[j]‖² − ½‖b.weight[:, j]‖²",
        "½‖b.weight[j]‖² + ½‖b.bias[j]‖² − ½‖c.weight[:, j]‖²",
    ]
    assert max(found.values()) < 1e-12


@pytest.mark.parametrize(
    "joined",
    [
        lambda h, g: h.where(h > 0, g),
        lambda h, g: torch.where(h > 0, h, g),
        torch.max,
        lambda h, g: torch.add(input=h, other=g),
    ],
)
def test_both_operands_count(joined: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    def run(net: Net, x: torch.Tensor) -> torch.Tensor:
        h = net.a(x).relu()
        return net.c(joined(h, net.b(h).relu()))

    found = violations(*made(run))
    assert any("a.weight" in formula and "b.weight" in formula and "c.weight" in formula for formula in found)
    assert max(found.values()) < 1e-12


@pytest.mark.parametrize("frozen", ["a.weight", "b.weight", "b.bias"])
def test_a_frozen_weight_balances_nothing(frozen: str) -> None:
    net, x = made(lambda net, x: net.c(net.b(net.a(x))))
    net.get_parameter(frozen).requires_grad_(False)
    assert all(rate < 1e-9 for rate in violations(net, x).values())


def test_a_layer_that_sends_no_error_back_is_no_layer() -> None:
    net, x = made(lambda net, x: net.c(net.b(net.a(x).relu()).relu()))
    net.b = Stopped(6, 6).double()
    assert all(rate < 1e-9 for rate in violations(net, x).values())


def test_pooling_of_one_image_goes_along_its_first_axis() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 1, 3))
    (law,) = laws_of(model, torch.randn(2, 8, 8)).of_kind("neuron")
    assert law.formula == "½‖0.weight[j]‖² + ½‖0.bias[j]‖² − ½‖3.weight[:, j]‖²"


def test_unfolded_images_keep_their_channels() -> None:
    def run(net: Net, x: torch.Tensor) -> torch.Tensor:
        image = net.a(x).relu().T[:, None, :, None]  # (6, 1, 7, 1)
        return net.c(F.unfold(image, (3, 1), padding=(1, 0)).sum(1).T)

    found = violations(*made(run))
    assert list(found) == ["½‖a.weight[j]‖² + ½‖a.bias[j]‖² − ½‖c.weight[:, j]‖²"]
    assert max(found.values()) < 1e-12


def test_what_averages_at_first_is_no_average() -> None:
    """A softmax is one at all weights, a learnt mixture that starts at 1/n is not; a buffer stays what it is."""

    def bias_laws(mixture: Callable[[Net, torch.Tensor], torch.Tensor]) -> list[str]:
        net, _ = made(lambda net, x: net.c(mixture(net, x) @ net.a(x)))
        net.register_buffer("average", torch.full((6, 6), 1 / 6, dtype=torch.float64))
        with torch.no_grad():
            net.W.fill_(1 / 6)
        lawful.attach(net, lawful.FeedbackAlignment(seed=0), strict=False)
        x = torch.randn(6, 5).double()
        assert lawcheck(net, x).ok
        return [law.formula for law in laws_of(net, x).of_kind("bias")]

    law = ["a.bias − B(c.weight)ᵀ c.bias"]
    assert bias_laws(lambda net, x: (x @ x.T).softmax(-1)) == law
    assert bias_laws(lambda net, x: F.dropout(torch.softmax(x @ x.T, -1).T, 0.5, training=False).mT) == law
    assert bias_laws(lambda net, x: net.get_buffer("average")) == law
    assert bias_laws(lambda net, x: net.W.abs()) == []
    assert bias_laws(lambda net, x: (x @ x.T).softmax(-1).mul_(torch.ones(6).double())) == []


def test_long_indices_are_told_apart() -> None:
    """How channels were moved is compared as text, and print leaves out the middle of long tensors."""
    one = torch.arange(2000)
    other = one.clone()
    other[700], other[701] = 701, 700
    assert str(one) == str(other)
    assert spelled((one, slice(3))) != spelled((other, slice(3)))
    assert spelled((one, slice(3))) == spelled((one.clone(), slice(3)))


class TanhLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x.tanh(), self.weight, self.bias)


class ClippedLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x).clamp(-10, 10)


class TanhWeight(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight.tanh(), self.bias)


class ScaleShift(nn.Module):
    """γ(x̂ + β): at γ = 1, β = 0 what layer norm computes."""

    def __init__(self, d):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d))

    def forward(self, x):
        return self.weight * (F.layer_norm(x, x.shape[-1:]) + self.bias)


@pytest.mark.parametrize("layer", [TanhLinear, ClippedLinear, TanhWeight])
@pytest.mark.parametrize("zero", ["input", "weight"])
def test_a_linear_layer_of_ones_own_is_not_judged_at_zero(layer, zero):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), layer(4, 2))
    x = torch.zeros(1, 3) if zero == "input" else torch.randn(5, 3)
    if zero == "weight":
        nn.init.zeros_(model[2].weight)
    assert not laws_of(model, x).of_kind("neuron", "matrix")


def test_a_norm_of_ones_own_is_not_judged_where_norms_start():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), ScaleShift(4), nn.Linear(4, 2))
    assert not laws_of(model, torch.randn(5, 3)).of_kind("neuron")
