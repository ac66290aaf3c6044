"""Laws linear in the weights, of biases and of directions that no error reaches; and whether all laws are found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from law_models import Attention, Residual
from torch import nn

import lawful
from lawful.checking import lawcheck
from lawful.conservation.base import Law
from lawful.conservation.derive import laws_of
from lawful.finder.search import find_laws


def linear_net(widths, bias=True, between=None):
    torch.manual_seed(0)
    layers = []
    for i, o in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(i, o, bias=bias), *([between()] if between else [])]
    return nn.Sequential(*(layers[:-1] if between else layers)).double()


def theta_of(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def by_name(laws, kind):
    return {law.parameters[0]: law for law in laws.of_kind(kind)}


def trained(model, x, steps=15, lr=0.1):
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        out = model(x)
        (out - torch.randn(out.shape, generator=generator, dtype=out.dtype)).square().mean().backward()
        optimizer.step()
    return theta_of(model)


def assert_kept(laws, before, after):
    """Linear laws have no drift: any learning rate will do."""
    for law in laws:
        moved = torch.cat([(after[n] - before[n]).reshape(-1) for n in law.parameters]).abs().max()
        assert float(moved) > 1e-3
        torch.testing.assert_close(law.value(after), law.value(before), rtol=0, atol=1e-13)


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_bias_and_range_laws_of_a_deep_linear_net_by_hand():
    model = linear_net((3, 4, 5, 2))
    B = {name: t.numpy() for name, t in lawful.attach(model, lawful.FeedbackAlignment(seed=1)).feedback.items()}
    laws, theta = laws_of(model), theta_of(model)
    b1, b2, b3 = (theta[f"{i}.bias"].numpy() for i in range(3))
    biases, ranges = by_name(laws, "bias"), by_name(laws, "range")
    np.testing.assert_allclose(biases["0.bias"].value(theta), b1 - B["1.weight"].T @ b2, rtol=1e-12)
    np.testing.assert_allclose(biases["1.bias"].value(theta), b2 - B["2.weight"].T @ b3, rtol=1e-12)
    assert biases["0.bias"].formula == "0.bias − B(1.weight)ᵀ 1.bias"
    assert ranges["0.weight"].formula == "ker(B(2.weight) B(1.weight))ᵀ 0.weight"
    for i, C in ((1, B["2.weight"].T), (0, B["1.weight"].T @ B["2.weight"].T)):
        # N is defined up to a rotation: NᵀN is the projection onto what C does not reach
        projection = np.eye(len(C)) - C @ np.linalg.pinv(C)
        for what in ("weight", "bias"):
            W = theta[f"{i}.{what}"].numpy()
            NW = ranges[f"{i}.{what}"].value(theta).numpy().reshape(len(C) - 2, -1)
            np.testing.assert_allclose(
                NW.T @ NW, W.reshape(len(C), -1).T @ projection @ W.reshape(len(C), -1), atol=1e-12
            )
    assert list(ranges["0.bias"].names) == ["0 · N bias (0, 0)", "0 · N bias (1, 0)"]
    linear = laws.of_kind("bias", "range")
    assert_kept(linear, theta, trained(model, torch.randn(6, 3, dtype=torch.float64)))
    for law in linear:
        v = {n: torch.randn_like(t) for n, t in theta.items()}
        torch.testing.assert_close(law.rate(theta, v), Law.rate(law, theta, v))
        assert not law.drift(theta, v).any() and len(law.drift(theta, v)) == len(law.names)


def test_a_layer_without_bias_passes_on_what_it_gets():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5, bias=False), nn.Linear(5, 2)).double()
    B = lawful.attach(model, lawful.FeedbackAlignment(seed=1)).feedback
    (law,) = laws_of(model).of_kind("bias")
    theta = theta_of(model)
    expected = theta["0.bias"] - B["1.weight"].T @ B["2.weight"].T @ theta["2.bias"]
    torch.testing.assert_close(law.value(theta), expected)
    assert law.formula == "0.bias − B(1.weight)ᵀ B(2.weight)ᵀ 2.bias"
    assert_kept([law], theta, trained(model, torch.randn(6, 3, dtype=torch.float64)))


def test_every_reader_and_writer_of_a_residual_stream():
    model = Residual().double()
    B = lawful.attach(model, lawful.FeedbackAlignment(seed=1)).feedback
    x = torch.randn(4, 3, dtype=torch.float64)
    laws, theta = by_name(laws_of(model, x), "bias"), theta_of(model)

    def back(name):
        return B[f"{name}.weight"].T @ theta[f"{name}.bias"]

    assert set(laws) == {"inp.bias", "f2.bias", "g2.bias"}
    torch.testing.assert_close(laws["g2.bias"].value(theta), theta["g2.bias"] - back("out"))
    torch.testing.assert_close(laws["f2.bias"].value(theta), theta["f2.bias"] - back("out") - back("g1"))
    expected = theta["inp.bias"] - back("out") - back("g1") - back("f1")
    torch.testing.assert_close(laws["inp.bias"].value(theta), expected)
    assert_kept(laws.values(), theta, trained(model, x))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_attention_averages_and_its_dropout_does_not(dropout):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.m, self.out = nn.MultiheadAttention(8, 2, dropout=dropout, batch_first=True), nn.Linear(8, 2)

        def forward(self, x):
            return F.relu(self.out(self.m(x, x, x, need_weights=False)[0]))

    model, x = Net().double(), torch.randn(2, 5, 8, dtype=torch.float64)
    B = lawful.attach(model, lawful.FeedbackAlignment(seed=1)).feedback
    laws, theta = {law.name: law for law in laws_of(model, x).of_kind("bias")}, theta_of(model)
    assert ("m.value" in laws) == (dropout == 0)
    after = trained(model, x)
    value = theta["m.in_proj_bias"][16:] - B["m.out_proj.weight"].T @ theta["m.out_proj.bias"]
    if dropout:  # the quantity is there, and it moves
        moved = after["m.in_proj_bias"][16:] - B["m.out_proj.weight"].T @ after["m.out_proj.bias"] - value
        assert float(moved.abs().max()) > 1e-4
    else:
        torch.testing.assert_close(laws["m.value"].value(theta), value)
        assert_kept([laws["m.value"]], theta, after)


@pytest.mark.parametrize("options", [{}, {"fused": False}, {"heads": 4, "kv_heads": 2}])
def test_value_biases_of_separate_projections(options):
    model, x = Attention(**options).double(), torch.randn(2, 6, 5, dtype=torch.float64)
    B = lawful.attach(model, lawful.FeedbackAlignment(seed=1)).feedback["o.weight"]
    law, theta = {law.name: law for law in laws_of(model, x).of_kind("bias")}["v"], theta_of(model)
    back = B.T @ theta["o.bias"]
    if options.get("kv_heads") == 2:  # each value head feeds two query heads
        back = back.reshape(2, 2, 2).sum(1).reshape(-1)
    torch.testing.assert_close(law.value(theta), theta["v.bias"] - back)
    assert_kept([law], theta, trained(model, x))


# -- where they hold, and where not ------------------------------------------------------------------------------------


class Between(nn.Module):
    """Two linear layers and something between them."""

    def __init__(self, function, width=6):
        super().__init__()
        self.function, self.a, self.b = function, nn.Linear(3, 6), nn.Linear(width, 2)

    def forward(self, x):
        return self.b(self.function(self.a(x)))


BETWEEN = {
    "nothing": (lambda h: h, 6, ["bias", "range"]),
    "a mean over positions": (lambda h: h.mean(1), 6, ["bias"]),
    "a copy": (lambda h: h.clone(), 6, ["bias"]),
    "positions as features": (lambda h: h.flatten(1), 24, ["bias"]),
    "one position": (lambda h: h[:, 0], 6, ["bias"]),
    "channels shifted in time": (lambda h: torch.cat([h[..., :3].roll(1, 1), h[..., 3:]], -1), 6, ["bias"]),
    "itself": (lambda h: h + h, 6, ["bias"]),
    "a constant": (lambda h: h + torch.ones(6, dtype=h.dtype), 6, ["bias"]),
    "a factor": (lambda h: 2 * h, 6, []),
    "a sign": (lambda h: -h, 6, []),
    "a sum over positions": (lambda h: h.sum(1), 6, []),
    "a difference": (lambda h: h - h.roll(1, 1), 6, []),
    "padding": (lambda h: F.pad(h, (0, 0, 1, 0))[:, :-1], 6, []),
    "a scaled sum": (lambda h: torch.add(h, h, alpha=2), 6, []),
    "an activation": (torch.relu, 6, []),
    "dropout": (lambda h: F.dropout(h, 0.5, True), 6, []),
}


@pytest.mark.parametrize("what", BETWEEN)
def test_what_may_stand_between_two_layers(what):
    function, width, kinds = BETWEEN[what]
    model, x = Between(function, width).double(), torch.randn(5, 4, 3, dtype=torch.float64)
    lawful.attach(model, lawful.FeedbackAlignment(seed=1))
    laws = laws_of(model, x).of_kind("bias", "range")
    assert {law.kind for law in laws} == set(kinds)
    lines = [line for line in lawcheck(model, x).table if line.where.endswith(("(bias)", "(range)"))]
    assert {line.where for line in lines} == {f"a ({kind})" for kind in kinds}
    assert all(line.violation < 1e-10 for line in lines)
    assert_kept(laws, theta_of(model), trained(model, x))


@pytest.mark.parametrize(
    ("function", "count"),
    [
        (lambda h: h, 21),
        (lambda h: h.roll(1, 1), 21),
        (lambda h: torch.cat([h[..., :3].roll(1, 1), h[..., 3:]], -1), 12),
        (lambda h: torch.cat([h[:, 1:, :3], h[:, :-1, 3:]], -1), 12),
    ],
    ids=["as they are", "rolled", "half of them rolled", "cut apart"],
)
def test_channels_moved_apart_share_no_matrix(function, count):
    """Σ_n δ_j a_l pairs channels at one position; where they meet at others, only groups that moved alike are left."""
    model, x = Between(function).double(), torch.randn(5, 4, 3, dtype=torch.float64)
    lawful.attach(model, lawful.FeedbackAlignment(seed=1))
    assert sum(len(law.names) for law in laws_of(model, x).of_kind("matrix")) == count
    assert lawcheck(model, x).ok


def test_linear_layers_behind_a_nonlinear_net_and_before_one():
    behind = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.Linear(5, 2)).double()
    before = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 2), nn.ReLU(), nn.Linear(2, 3)).double()
    for model, site, rows in ((behind, "2", 3), (before, "0", 4)):
        lawful.attach(model, lawful.FeedbackAlignment(seed=1))
        laws = laws_of(model).of_kind("bias", "range")
        assert {law.name for law in laws} == {site}
        weight = by_name(laws, "range")[f"{site}.weight"]
        assert len(weight.names) == rows * model[int(site)].in_features
        assert_kept(laws, theta_of(model), trained(model, torch.randn(6, 3, dtype=torch.float64)))


RULES = {
    "bp": (lawful.Backprop(), False),
    "fa": (lawful.FeedbackAlignment(seed=1), True),
    "usf": (lawful.UniformSignSymmetry(), False),
    "fsf": (lawful.FixedMagnitudeSignSymmetry(seed=1), False),
    "kp": (lawful.KolenPollack(seed=1), False),
    "wm": (lawful.WeightMirror(seed=1), False),
    "bsf": (lawful.BatchwiseMagnitudeSignSymmetry(seed=1), False),
    "sign-fa": (lawful.SignFeedbackAlignment(seed=1), False),
    "low rank": (lawful.LowRankFeedback(rank=1, seed=1), True),
}


@pytest.mark.parametrize("rule", RULES)
def test_only_constant_feedback_has_them(rule):
    model = linear_net((3, 6, 5, 2))
    lawful.attach(model, RULES[rule][0])
    kinds = {law.kind for law in laws_of(model)} & {"bias", "range"}
    assert kinds == ({"bias", "range"} if RULES[rule][1] else set())
    assert lawcheck(model).ok or rule == "sign-fa"


def test_low_rank_feedback_reaches_fewer_directions():
    model = linear_net((3, 6, 5))
    lawful.attach(model, lawful.LowRankFeedback(rank=1, seed=1))
    assert len(by_name(laws_of(model), "range")["0.bias"].names) == 6 - 1


def test_feedback_that_learns_keeps_the_identity_and_breaks_the_law():
    """Of KP, B = W + C moves: ḃ_1 = B(t)ᵀ ḃ_2 at every moment, but b_1 − B(t)ᵀ b_2 moves by −Ḃᵀb_2."""
    model, x = linear_net((3, 4, 2)), torch.randn(6, 3, dtype=torch.float64)
    lawful.attach(model, lawful.KolenPollack(seed=1))
    (law,) = laws_of(model, x, identity=True).of_kind("bias")
    theta = theta_of(model)
    model(x).square().mean().backward()
    v = {n: -p.grad for n, p in model.named_parameters()}
    assert float((law.rate(theta, v).abs() / law.magnitude(theta, v)).max()) < 1e-12
    h = 1e-6
    moved = law.value({n: theta[n] + h * v[n] for n in theta}) - law.value(theta)
    torch.testing.assert_close(moved / h, -v["1.weight"].T @ theta["1.bias"], rtol=1e-4, atol=1e-8)
    assert float(moved.abs().max()) > 1e-4 * h


def test_the_ledger_follows_biases_and_leaves_ranges_out():
    model, x = linear_net((3, 6, 2)), torch.randn(6, 3, dtype=torch.float64)
    lawful.attach(model, lawful.FeedbackAlignment(seed=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.1)
    with lawful.Ledger(model, optimizer) as ledger:
        for _ in range(10):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert [(law.kind, law.name) for law in ledger.laws] == [("neuron", "0"), ("bias", "0")]
    assert float(ledger.residual.max()) < 1e-12 and float(ledger.violation.max()) < 1e-12
    decay = ledger.parts["weight decay"][6:]
    assert float(decay.abs().max()) > 1e-4 and not ledger.parts["finite step"][6:].any()


# -- completeness ------------------------------------------------------------------------------------------------------


def independent(model, laws):
    """The number of independent laws at a random point: the rank of their gradients."""
    generator = torch.Generator().manual_seed(5)
    theta = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in model.named_parameters()}
    columns = [torch.zeros(sum(len(law.names) for law in laws), 0, dtype=torch.float64)]
    for name, value in theta.items():
        basis = torch.eye(value.numel(), dtype=torch.float64).reshape(-1, *value.shape)
        zero = {n: torch.zeros_like(t) for n, t in theta.items()}
        rates = [torch.cat([law.rate(theta, {**zero, name: e}).reshape(-1) for law in laws]) for e in basis]
        columns.append(torch.stack(rates, 1))
    return int(torch.linalg.matrix_rank(torch.cat(columns, 1)))


NETS = [(2, 3, 1), (2, 2, 2, 1), (3, 4, 2), (4, 3, 2), (3, 4, 4, 3), (2, 3, 2, 2)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rule", ["fa", "dfa", "drtp"])
@pytest.mark.parametrize("widths", NETS, ids=str)
def test_as_many_laws_as_the_finder_certifies(widths, rule, bias):
    direct = {"dfa": lawful.DirectFeedbackAlignment, "drtp": lawful.DirectRandomTargetProjection}
    model = linear_net(widths, bias, between=nn.Identity)
    lawful.attach(model, direct[rule]() if rule in direct else lawful.FeedbackAlignment())
    found = find_laws(widths, rule=rule, activation="linear", bias=bias)
    assert found.certified and independent(model, laws_of(model)) == found.count


def test_25_of_40():
    """20 from the matrix laws, 5 more from N W: the count of the theory."""
    model = linear_net((3, 4, 4, 3), bias=False)
    lawful.attach(model, lawful.FeedbackAlignment())
    laws = laws_of(model)
    assert independent(model, laws.of_kind("matrix")) == 20 and independent(model, laws) == 25


@pytest.mark.parametrize(("widths", "rule"), [((3, 2, 2, 3), "fa"), ((3, 4, 3), "fa"), ((3, 4, 4, 3), "dfa")])
def test_softmax_outputs(widths, rule):
    model = linear_net(widths, True, between=nn.Identity)
    lawful.attach(model, lawful.DirectFeedbackAlignment() if rule == "dfa" else lawful.FeedbackAlignment())
    found = find_laws(widths, rule=rule, activation="linear", bias=True, output="softmax")
    assert found.certified and independent(model, laws_of(model, output="softmax")) == found.count


@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_relu_nets(rule):
    model = linear_net((2, 6, 5, 2), True, between=nn.ReLU)
    lawful.attach(model, lawful.DirectFeedbackAlignment() if rule == "dfa" else lawful.FeedbackAlignment())
    found = find_laws((2, 6, 5, 2), rule=rule, activation="relu", bias=True)
    assert found.certified and independent(model, laws_of(model)) == found.count == (5 if rule == "dfa" else 11)


@pytest.mark.parametrize("fault", ["bias dropped", "feedback scaled"])
def test_lawcheck_uses_them(fault):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            return h + 0.0

        @staticmethod
        def backward(ctx, g):
            return g * (2 if fault == "feedback scaled" else 1)

    class Dropped(torch.autograd.Function):
        @staticmethod
        def forward(ctx, b):
            return b.view_as(b)

        @staticmethod
        def backward(ctx, g):
            return 0 * g

    class Layer(nn.Linear):
        def forward(self, x):
            bias = Dropped.apply(self.bias) if fault == "bias dropped" else self.bias
            return (
                F.linear(x, self.weight, bias)
                if fault == "bias dropped"
                else Wrong.apply(F.linear(x, self.weight, bias))
            )

    model = nn.Sequential(Layer(3, 4), nn.Linear(4, 2))
    worst = {line.where: line.violation for line in lawcheck(model, torch.randn(5, 3)).table}
    assert worst["0 (bias)"] > 1e-3
    assert worst["0 (range)"] < 1e-10  # blind to what stays in the range
