"""The theory's sentences about layers, each as a law that stands still under any of these rules, or as one that moves.

A law that must not be derived is also measured: it is taken from a model that has it, and moves in the one that does
not.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from law_rates import Flow
from torch import nn

import lawful
from lawful.conservation.derive import laws_of


def batch(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Function(nn.Module):
    """Modules by name and what is done with them."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args):
        return self.function(self, *args)


def padded(mode):
    conv = nn.Conv1d(3, 2, 3, padding=1, padding_mode=mode)
    return nn.Sequential(nn.Conv1d(1, 3, 3), nn.ReLU(), conv)


def hf_conv1d():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    return nn.Sequential(conv1d(6, 5), nn.ReLU(), conv1d(2, 6))


def residual_of_batch_norms():
    return Function(
        lambda m, x: m.head((h := m.n1(m.stem(x))) + m.n2(m.conv(F.relu(h)))),
        stem=nn.Conv2d(2, 4, 3, padding=1),
        n1=nn.BatchNorm2d(4),
        conv=nn.Conv2d(4, 4, 3, padding=1),
        n2=nn.BatchNorm2d(4),
        head=nn.Conv2d(4, 2, 1),
    )


def attention(dropout=0.0, mask=False, cross=False, **options):
    def forward(m, x):
        kv = m.c(x) if cross else m.q(x)
        key_padding = torch.zeros(x.shape[:2], dtype=torch.bool)
        key_padding[:, -1] = mask
        attn = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1) if mask else None
        y = m.m(m.q(x), kv, kv, key_padding_mask=key_padding if mask else None, attn_mask=attn, need_weights=False)
        return m.o(y[0])

    heads = nn.MultiheadAttention(8, 2, batch_first=True, dropout=dropout, **options)
    return Function(forward, q=nn.Linear(5, 8), c=nn.Linear(5, 8), m=heads, o=nn.Linear(8, 3))


def positions(fixed):
    codes = batch(4, 6, seed=3) if fixed else torch.zeros(4, 6)
    return Function(
        lambda m, x: m.b(F.relu(m.a(m.e(x) + codes.to(m.a.weight)) if fixed else m.a(m.e(x)))),
        e=nn.Linear(5, 6),
        a=nn.Linear(6, 7),
        b=nn.Linear(7, 2),
    )


def gated(activation):
    return Function(
        lambda m, x: m.down(activation(m.gate(x)) * m.up(x)),
        gate=nn.Linear(5, 6),
        up=nn.Linear(5, 6),
        down=nn.Linear(6, 2),
    )


HOLD = {
    "zero padding": (lambda: padded("zeros"), batch(2, 1, 9), {"0"}),
    "reflected padding": (lambda: padded("reflect"), batch(2, 1, 9), {"0"}),
    "circular padding": (lambda: padded("circular"), batch(2, 1, 9), {"0"}),
    "replicated padding": (lambda: padded("replicate"), batch(2, 1, 9), {"0"}),
    "Conv1D of transformers": (hf_conv1d, batch(4, 5), {"0"}),
    "batch norms that write to a stream": (residual_of_batch_norms, batch(3, 2, 5, 5), {"n1 + n2"}),
    "attention with masks": (lambda: attention(mask=True), batch(2, 6, 5), {"m.query + m.key", "m.value"}),
    "attention with dropout": (lambda: attention(dropout=0.5), batch(2, 6, 5), {"m.query + m.key", "m.value"}),
    "cross-attention": (lambda: attention(cross=True), batch(2, 6, 5), {"q", "c", "m.query + m.key", "m.value"}),
    "cross-attention of another width": (
        lambda: Function(
            lambda m, x: m.o(m.m(m.q(x), x, x, need_weights=False)[0]),
            q=nn.Linear(5, 8),
            m=nn.MultiheadAttention(8, 2, batch_first=True, kdim=5, vdim=5),
            o=nn.Linear(8, 3),
        ),
        batch(2, 6, 5),
        {"q"},
    ),
    "SwiGLU": (lambda: gated(F.silu), batch(4, 5), {"up"}),
    "ReGLU": (lambda: gated(F.relu), batch(4, 5), {"up", "gate"}),
    "dropout of nothing": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.0), nn.Linear(6, 2)),
        batch(4, 5),
        {"0"},
    ),
}


@pytest.mark.parametrize("rule", ["fa", "weight mirror", "backprop", "sign"])
@pytest.mark.parametrize("name", HOLD)
def test_holds_under_every_rule(name, rule):
    make, x, sites = HOLD[name]
    flow = Flow(make(), x, rule)
    assert sites <= set(flow.of("neuron"))
    assert flow.worst() < 1e-10


@pytest.mark.parametrize("eps", [1e-5, 0.3])
@pytest.mark.parametrize(
    ("norm", "x"),
    [
        (nn.BatchNorm2d, batch(3, 2, 6, 6)),
        (lambda size, eps: nn.BatchNorm2d(size, eps).eval(), batch(3, 2, 6, 6)),
        (lambda size, eps: nn.GroupNorm(2, size, eps), batch(3, 2, 6, 6)),
        (nn.LayerNorm, batch(2, 5, 2)),
        (nn.RMSNorm, batch(2, 5, 2)),
        (lambda size, eps: nn.LayerNorm(size, eps, bias=False), batch(2, 5, 2)),
    ],
)
def test_the_affine_part_of_any_norm_at_any_eps_and_all_its_readers(norm, x, eps):
    layer = (lambda i, o: nn.Conv2d(i, o, 1)) if x.dim() == 4 else nn.Linear
    model = Function(
        lambda m, y: m.q(h := m.n(m.a(y))) * m.k(h) + m.v(F.relu(h)),
        a=layer(2, 4),
        n=norm(4, eps),
        q=layer(4, 3),
        k=layer(4, 3),
        v=layer(4, 3),
    )
    for rule in ("fa", "weight mirror"):
        flow = Flow(model, x, rule, limit=False)
        law = flow.of("neuron")["n"]
        assert flow.violation(law) < 1e-10
        beta = {"n.bias"} & flow.theta.keys()
        assert set(law.parameters) == {"n.weight", "q.weight", "k.weight", "v.weight"} | beta


def test_conv1d_of_transformers_by_hand():
    model = hf_conv1d()
    (law,) = laws_of(model, batch(4, 5).float()).of_kind("neuron")
    theta = {n: p.detach().double() for n, p in model.named_parameters()}
    expected = theta["0.weight"].square().sum(0) + theta["0.bias"].square() - theta["2.weight"].square().sum(1)
    torch.testing.assert_close(law.value(theta), expected / 2)
    assert law.formula == "½‖0.weight[:, j]‖² + ½‖0.bias[j]‖² − ½‖2.weight[j]‖²"


# -- what breaks a law ---------------------------------------------------------------------------------------------


def sequence(*between):
    return nn.Sequential(nn.Linear(5, 6), *between, nn.Linear(6, 2))


def convolutions(*between):
    return nn.Sequential(nn.Conv1d(1, 3, 3), nn.ReLU(), *between, nn.Conv1d(3, 2, 3))


def stream(raw):
    return Function(
        lambda m, x: m.o(((h := m.a(x)) + x if raw else (h := m.a(x))) + m.c(F.relu(m.b(h)))),
        a=nn.Linear(5, 5),
        b=nn.Linear(5, 4),
        c=nn.Linear(4, 5),
        o=nn.Linear(5, 2),
    )


class Started(nn.Module):
    def __init__(self, started, activation="relu"):
        super().__init__()
        self.rnn = nn.RNN(5, 6, nonlinearity=activation, batch_first=True)
        self.out, self.started = nn.Linear(6, 2), started

    def forward(self, x):
        return self.out(self.rnn(x, torch.ones(1, x.shape[0], 6).to(x) if self.started else None)[0])


def recycled(tied):
    def forward(m, x):
        h = F.relu(m.f(m.e(x)))
        return F.linear(h, m.e.weight.T if tied else m.g.weight)

    return Function(forward, e=nn.Linear(5, 6, bias=False), f=nn.Linear(6, 6), g=nn.Linear(6, 5, bias=False))


BREAK = {
    "a constant as padding": (
        lambda: convolutions(nn.ConstantPad1d(1, 0.0)),
        lambda: convolutions(nn.ConstantPad1d(1, 0.7)),
        batch(2, 1, 9),
        "0",
    ),
    "alpha dropout": (lambda: sequence(nn.Dropout(0.5)), lambda: sequence(nn.AlphaDropout(0.5)), batch(4, 5), "0"),
    "raw input added to a stream": (lambda: stream(False), lambda: stream(True), batch(4, 5), "a + c"),
    "fixed position codes": (lambda: positions(False), lambda: positions(True), batch(3, 4, 5), "e"),
    "an RNN that starts elsewhere": (lambda: Started(False), lambda: Started(True), batch(2, 4, 5), "rnn"),
    "a tanh RNN": (lambda: Started(False), lambda: Started(False, "tanh"), batch(2, 4, 5), "rnn"),
    "GELU": (lambda: sequence(nn.ReLU()), lambda: sequence(nn.GELU()), batch(4, 5), "0"),
    "SiLU": (lambda: sequence(nn.ReLU()), lambda: sequence(nn.SiLU()), batch(4, 5), "0"),
    "tanh": (lambda: sequence(nn.ReLU()), lambda: sequence(nn.Tanh()), batch(4, 5), "0"),
    "sigmoid": (lambda: sequence(nn.ReLU()), lambda: sequence(nn.Sigmoid()), batch(4, 5), "0"),
    "the gate of SwiGLU": (lambda: gated(F.relu), lambda: gated(F.silu), batch(4, 5), "gate"),
    "tied weights": (lambda: recycled(False), lambda: recycled(True), batch(4, 5), "e"),
}


REFUSED = ("tied weights", "fa")
"""Feedback for a weight that is used by a function: ``attach`` refuses it, so there is no law to break."""


@pytest.mark.parametrize(("name", "rule"), [(n, r) for n in BREAK for r in ("fa", "backprop") if (n, r) != REFUSED])
def test_breaks(name, rule):
    make, spoil, x, site = BREAK[name]
    kept, broken = Flow(make(), x, rule), Flow(spoil(), x, rule)
    law = kept.of("neuron")[site]
    assert kept.violation(law) < 1e-10
    assert site not in broken.of("neuron")
    assert broken.violation(law) > 1e-6
    assert not len(broken.laws) or broken.worst() < 1e-10


def test_batch_norm_in_eval_mode_has_no_law_of_w():
    def make():
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))

    x = batch(3, 2, 8, 8)
    train, still = Flow(make(), x), Flow(make().eval(), x)
    for kind in ("scale", "shift"):
        law = train.of(kind)["0"]
        assert train.violation(law) < 1e-10 and still.violation(law) > 1e-6
        assert "0" not in still.of(kind)


def test_values_and_outputs_of_attention_keep_a_matrix_under_fa_and_the_diagonal_under_sign_rules():
    x = batch(2, 6, 5)
    fa, sign = Flow(attention(), x, "fa"), Flow(attention(), x, "sign")
    law = fa.of("matrix")["m.value"]
    assert fa.violation(law) < 1e-10
    assert set(sign.of("matrix")) == {"m.query + m.key"} and "m.value" in sign.of("neuron")
    assert sign.violation(law) > 1e-6
    for rule in ("backprop", "kolen-pollack"):
        flow = Flow(attention(), x, rule)
        assert flow.violation(flow.of("matrix")["m.value"]) < 1e-10


@pytest.mark.parametrize("rule", ["fa", "weight mirror", "sign", "backprop"])
def test_softmax_shifts_with_label_smoothing_and_class_weights(rule):
    flow = Flow(sequence(nn.Tanh()), batch(6, 5), rule, output="softmax")
    laws = flow.laws.of_kind("shift")
    assert [law.formula for law in laws] == ["Σ_j 2.weight[j]", "Σ_j 2.bias[j]"]
    flow.model.zero_grad()
    loss = F.cross_entropy(
        flow.model(batch(6, 5)),
        torch.arange(6) % 2,
        weight=torch.tensor([0.3, 1.9], dtype=torch.float64),
        label_smoothing=0.2,
    )
    loss.backward()
    g = {n: p.grad for n, p in flow.model.named_parameters()}
    for law in laws:
        assert flow.relative(law.rate(flow.theta, g), law.magnitude(flow.theta, g)) < 1e-10
        assert float(law.magnitude(flow.theta, g).max()) > 1e-3
    assert lawful.lawcheck(sequence(nn.Tanh()), batch(6, 5)).ok
