"""Raw parameters in einsum, matmul, bmm, addmm, bilinear: layers like any other; what is not followed is named."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from law_rates import Flow
from torch import nn

import lawful
from lawful.checking import lawcheck
from lawful.conservation.derive import laws_of

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
S = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
relu, einsum = F.relu, torch.einsum


class Raw(nn.Module):
    """A function of x and of parameters with these shapes."""

    def __init__(self, function, **shapes):
        super().__init__()
        self.function = function
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x):
        return self.function(self, x)


lawful.register(Raw, weights=list("abcwqkvo"), added=["bias"])


def attention(s, x):
    q, k, v = (einsum("btc,chd->bhtd", x, w) for w in (s.q, s.k, s.v))
    y = einsum("bhqk,bhkd->bhqd", einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v)
    return einsum("bhqd,hdo->bqo", y, s.o)


def grouped_queries(s, x):
    q = einsum("btc,grdc->btgrd", x, s.q)
    k, v = (einsum("btc,gdc->btgd", x, w) for w in (s.k, s.v))
    y = einsum("bgrqk,bkgd->bqgrd", einsum("bqgrd,bkgd->bgrqk", q, k).softmax(-1), v)
    return einsum("bqgrd,ogrd->bqo", y, s.o)


def packed(s, x):
    q, k, v = (x @ w for w in s.w.chunk(3, 0))
    return (q @ k.mT).softmax(-1) @ v @ s.o


TWO = {"a": (6, 5), "b": (2, 6)}
TRANSPOSED = {"a": (5, 6), "b": (6, 2)}

FOLLOWED = {
    "einsum": (lambda s, x: einsum("bi,oi->bo", relu(einsum("bi,oi->bo", x, s.a)), s.b), TWO, X, {"a": 6}, {}),
    "einsum, dots": (
        lambda s, x: einsum("...i,io->...o", relu(einsum("...i,io->...o", x, s.a) + s.bias), s.b),
        {**TRANSPOSED, "bias": (6,)},
        S,
        {"a + bias": 6},
        {},
    ),
    "einsum, weight first": (
        lambda s, x: einsum("oi,bi", s.b, relu(einsum("oi,bi->bo", s.a, x))).T,
        TWO,
        X,
        {"a": 6},
        {},
    ),
    "matmul": (lambda s, x: relu(x @ s.a) @ s.b, TRANSPOSED, S, {"a": 6}, {}),
    "matmul of a transpose": (lambda s, x: relu(x @ s.a.T) @ s.b.t(), TWO, X, {"a": 6}, {}),
    "weight @ x": (lambda s, x: (s.b @ relu(s.a @ x.T)).T, TWO, X, {"a": 6}, {}),
    "addmm": (
        lambda s, x: relu(torch.addmm(s.bias, x, s.a)) @ s.b,
        {**TRANSPOSED, "bias": (6,)},
        X,
        {"a + bias": 6},
        {},
    ),
    "bmm": (
        lambda s, x: torch.bmm(relu(torch.bmm(x.expand(3, 4, 5), s.a)), s.b).mean(0),
        {"a": (3, 5, 6), "b": (3, 6, 2)},
        X,
        {"a": 18},
        {},
    ),
    "experts": (
        lambda s, x: einsum("bed,edo->bo", relu(einsum("bi,eid->bed", x, s.a)), s.b),
        {"a": (3, 5, 6), "b": (3, 6, 2)},
        X,
        {"a": 18},
        {},
    ),
    "bilinear": (
        lambda s, x: F.bilinear(x @ s.a.T, x @ s.c.T, s.w, s.bias) @ s.o,
        {"a": (6, 5), "c": (4, 5), "w": (7, 6, 4), "bias": (7,), "o": (7, 2)},
        X,
        {"a": 6, "c": 4, "w + bias": 7},
        {"a": 21, "c": 10, "w + bias": 28},
    ),
    "attention": (
        attention,
        {"q": (5, 2, 4), "k": (5, 2, 4), "v": (5, 2, 4), "o": (2, 4, 3)},
        S,
        {"q + k": 8, "v": 8},
        {"q + k": 20},
    ),
    "grouped queries": (
        grouped_queries,
        {"q": (2, 3, 4, 5), "k": (2, 4, 5), "v": (2, 4, 5), "o": (3, 2, 3, 4)},
        S,
        {"q + k": 8, "v": 8},
        {"q + k": 20},
    ),
    "packed attention": (packed, {"w": (15, 4), "o": (4, 3)}, S, {"w": 8}, {"w": 10}),
    "a constant mixture": (
        lambda s, x: relu(einsum("btc,ts->bsc", x @ s.a, torch.linspace(-1, 2, 42).reshape(6, 7).to(x))) @ s.b,
        TRANSPOSED,
        S,
        {"a": 6},
        {},
    ),
}


@pytest.mark.parametrize("rule", ["fa", "weight mirror", "backprop"])
@pytest.mark.parametrize("name", FOLLOWED)
def test_followed(name, rule):
    function, shapes, x, neurons, matrices = FOLLOWED[name]
    flow = Flow(Raw(function, **shapes), x, rule)
    for kind, expected in (("neuron", neurons), ("matrix", matrices)):
        found: dict[str, int] = {}
        for law in flow.laws.of_kind(kind):
            found[law.name] = found.get(law.name, 0) + len(law.names)
        assert found == expected, kind
    assert flow.worst() < 1e-10


def test_the_value_of_a_law_through_einsum_by_hand():
    model = Raw(attention, q=(5, 2, 4), k=(5, 2, 4), v=(5, 2, 4), o=(2, 4, 3))
    laws = {law.name: law for law in laws_of(model, S.float()).of_kind("neuron")}
    theta = {n: p.detach().double() for n, p in model.named_parameters()}
    scores = (theta["q"].square().sum(0) - theta["k"].square().sum(0)).reshape(-1) / 2
    torch.testing.assert_close(laws["q + k"].value(theta), scores)
    values = (theta["v"].square().sum(0) - theta["o"].square().sum(2)).reshape(-1) / 2
    torch.testing.assert_close(laws["v"].value(theta), values)
    assert laws["v"].formula == "½‖v[:, i, j]‖² − ½‖o[i, j]‖²"


NOT_FOLLOWED = {
    "a diagonal": (lambda s, x: einsum("bi,ii->bi", x @ s.a, s.w) @ s.b, {**TRANSPOSED, "w": (6, 6)}, X, "einsum"),
    "three operands": (lambda s, x: einsum("bi,io,oc->bc", x, s.a, s.b), TRANSPOSED, X, "einsum"),
    "a copy of a weight": (lambda s, x: relu(x @ s.a.T.clone()) @ s.b.T, TWO, X, None),
    "columns of a weight": (
        lambda s, x: relu(relu(x @ s.a) @ s.w[:, :3]) @ s.c,
        {"a": (5, 6), "w": (6, 4), "c": (3, 2)},
        X,
        None,
    ),
    "a mixture of positions": (
        lambda s, x: einsum("btc,ts->bsc", x @ s.a, s.w) @ s.b,
        {**TRANSPOSED, "w": (6, 7)},
        S,
        None,
    ),
    "used at an input too": (lambda s, x: relu(relu(x @ s.a) @ s.a) @ s.b, {"a": (5, 5), "b": (5, 2)}, X, None),
    "in two roles": (lambda s, x: relu(x @ s.a) @ s.a.T, {"a": (5, 6)}, X, None),
    "tensordot": (lambda s, x: torch.tensordot(relu(x @ s.a), s.b, 1), TRANSPOSED, X, "tensordot"),
}


@pytest.mark.parametrize("name", NOT_FOLLOWED)
def test_not_followed_means_no_law_and_a_name(name):
    function, shapes, x, unknown = NOT_FOLLOWED[name]
    laws = laws_of(Raw(function, **shapes), x.float())
    assert len(laws) == 0
    assert laws.unknown == (() if unknown is None else (unknown,))
    assert laws.reasons.keys() == shapes.keys()


def test_a_layer_that_also_reads_an_input_has_no_law():
    """Its Ẇ[:, j] holds the share of the input, so ½‖W[j]‖² − Ψ_j moves."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.b(relu(self.a(relu(self.a(x)))))

    flow = Flow(Twice(), X, "backprop")
    assert not flow.laws.of_kind("neuron")
    W, V, g, h = flow.theta["a.weight"], flow.theta["b.weight"], flow.g["a.weight"], flow.g["b.weight"]
    rate = (W * g).sum(1) + flow.theta["a.bias"] * flow.g["a.bias"] - (W * g).sum(0) - (V * h).sum(0)
    assert flow.relative(rate, (W * g).abs().sum(1)) > 1e-6


def test_lawcheck_of_a_registered_module():
    model = Raw(attention, q=(5, 2, 4), k=(5, 2, 4), v=(5, 2, 4), o=(2, 4, 3))
    check = lawcheck(model, S, rule=lawful.FeedbackAlignment(seed=0))
    assert check.ok, check
    assert {line.where for line in check.table if line.what == "identity"} == {
        "q + k (neuron)",
        "q + k (matrix)",
        "v (neuron)",
        "o (shift)",
    }
    wrong = {"o": torch.ones(2, 4, 3)}
    assert not lawcheck(model, S, feedback=wrong).ok


class Rectified(nn.Module):
    def __init__(self, between, width=6):
        super().__init__()
        self.between, self.a, self.b = between, nn.Linear(3, 6), nn.Linear(width, 2)

    def forward(self, x):
        return self.b(self.between(self.a(x)))


@pytest.mark.parametrize(
    ("between", "count"),
    [
        (lambda h: h.clamp(min=0), 6),
        (lambda h: h.clamp(0), 6),
        (lambda h: h.clone().clamp_(min=0.0), 6),
        (lambda h: torch.clamp(h, max=0), 6),
        (lambda h: h.clip(min=0), 6),
        (lambda h: torch.clamp_min(h, 0), 6),
        (lambda h: h.clamp_max(0), 6),
        (lambda h: h.clamp(0, 1), 0),
        (lambda h: h.clamp(min=0.1), 0),
        (lambda h: h.clamp(min=torch.zeros(6).double()), 0),
    ],
)
def test_a_clamp_at_zero_is_a_rectifier(between, count):
    model = Rectified(between).double()
    lawful.attach(model, lawful.FeedbackAlignment())
    assert sum(len(law.names) for law in lawful.laws_of(model, torch.randn(5, 3).double())) == count
    check = lawful.lawcheck(model, torch.randn(5, 3).double())
    assert check.ok and (count == 0 or any(line.what == "identity" for line in check.table))


@pytest.mark.parametrize("between", [nn.GLU(), lambda h: torch.nn.functional.glu(h, dim=1)])
def test_a_gated_linear_unit_keeps_the_law_of_its_linear_half(between):
    model = Rectified(between, 3).double()
    lawful.attach(model, lawful.FeedbackAlignment())
    (law,) = lawful.laws_of(model, torch.randn(5, 3).double())
    assert [name.rpartition(" ")[2] for name in law.names] == ["0", "1", "2"]
    assert lawful.lawcheck(model, torch.randn(5, 3).double()).ok
