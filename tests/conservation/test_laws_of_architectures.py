"""Laws through every construction: the identity holds for random errors, and the formulas are the theory's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from law_models import MODELS, build
from torch import nn

import lawful
from lawful.checking import lawcheck
from lawful.conservation.derive import laws_of
from lawful.conservation.shift import ShiftLaw


@pytest.mark.parametrize("name", MODELS)
def test_the_identity_holds_under_backprop_for_random_errors_and_weights(name):
    model, x = build(name)
    check = lawcheck(model, x)
    assert check.ok, check
    assert sum(line.what == "identity" for line in check.table) >= 1


def sites(name, *kinds, **options):
    model, x = build(name)
    return {law.name: law for law in laws_of(model, x, **options).of_kind(*kinds)}


EXPECTED = {
    "residual": {"inp + f2 + g2": 6, "f1": 8, "g1": 7},
    "shared": {"a + b": 6},
    "swiglu": {"up": 6},
    "reglu": {"up": 6, "gate": 6},
    "packed gate": {"up": 6},
    "attention": {"q + k": 8, "v": 8},
    "attention by hand": {"q + k": 8, "v": 8},
    "rotary half": {"q + k": 4, "v": 8},
    "rotary interleaved": {"q + k": 4, "v": 8},
    "grouped query": {"q + k": 4, "v": 4},
    "mha": {"a": 8, "m.query + m.key": 8, "m.value": 8, "m.out_proj": 8},
    "densenet": {"a": 4, "b": 3},
    "unrolled rnn": {"ih + hh": 5},
    "relu rnn": {"rnn.l0": 5, "rnn.l1": 5},
    "pre-norm": {"n1": 8, "at.query + at.key": 8, "at.value": 8, "n2": 8, "f1": 9, "nf": 8},
    "positions": {"pos + emb + g": 6, "g": 6, "f": 5},
    "cnn": {"0": 4, "3": 6, "6": 4, "10": 5},
    "batch norm": {"1": 4},
    "batch norm, eval": {"1": 4},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_sites_and_channels(name):
    assert {site: len(law.names) for site, law in sites(name, "neuron").items()} == EXPECTED[name]


def test_the_stream_collects_every_writer_and_reader():
    law = sites("residual", "neuron")["inp + f2 + g2"]
    assert law.formula == (
        "½‖inp.weight[j]‖² + ½‖inp.bias[j]‖² + ½‖f2.weight[j]‖² + ½‖f2.bias[j]‖² + ½‖g2.weight[j]‖² + ½‖g2.bias[j]‖²"
        " − ½‖f1.weight[:, j]‖² − ½‖g1.weight[:, j]‖² − ½‖out.weight[:, j]‖²"
    )


def test_flatten_blocks_and_grouped_filters_by_hand():
    model, x = build("cnn")
    law = {law.name: law for law in laws_of(model, x)}
    theta = {n: p.detach() for n, p in model.named_parameters()}
    first, grouped, up, last = (model[i].weight.detach().numpy() for i in (0, 3, 6, 10))
    bias = model[0].bias.detach().numpy()
    # the grouped convolution has out 6, in 4, 2 groups: channel j is read by the 3 filters of its group
    read = [(grouped[3 * (j // 2) : 3 * (j // 2) + 3, j % 2] ** 2).sum() for j in range(4)]
    expected = 0.5 * ((first**2).sum((1, 2, 3)) + bias**2 - np.array(read))
    np.testing.assert_allclose(law["0"].value(theta).numpy(), expected, rtol=1e-12)
    # the transposed one has in 6, out 4, 2 groups; flattening gives channel j the columns 4j … 4j + 3
    written = [(up[3 * (j // 2) : 3 * (j // 2) + 3, j % 2] ** 2).sum() for j in range(4)]
    block = (last.reshape(5, 4, 4) ** 2).sum((0, 2))
    expected = 0.5 * (np.array(written) + model[6].bias.detach().numpy() ** 2 - block)
    np.testing.assert_allclose(law["6"].value(theta).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["attention", "mha", "attention by hand"])
def test_attention_conserves_a_matrix_per_head(name):
    model, x = build(name)
    theta = {n: p.detach() for n, p in model.named_parameters()}
    if name == "mha":
        W, b = theta["m.in_proj_weight"], theta["m.in_proj_bias"]
        (WQ, WK, _), (bQ, bK, _) = W.chunk(3), b.chunk(3)
    else:
        WQ, WK, bQ, bK = (theta[n] for n in ("q.weight", "k.weight", "q.bias", "k.bias"))
    expected = []
    for h in range(2):
        rows = slice(4 * h, 4 * h + 4)
        M = WQ[rows] @ WQ[rows].T + torch.outer(bQ[rows], bQ[rows])
        M -= WK[rows] @ WK[rows].T + torch.outer(bK[rows], bK[rows])
        expected.append(M[tuple(torch.triu_indices(4, 4))])
    law = next(law for law in laws_of(model, x).of_kind("matrix") if "k" in law.name.split(" + ")[-1])
    torch.testing.assert_close(law.value(theta), torch.cat(expected), rtol=1e-12, atol=1e-14)


RULES = {
    "fa": lawful.FeedbackAlignment(seed=1),
    "kp": lawful.KolenPollack(seed=1),
    "usf": lawful.UniformSignSymmetry(),
    "fsf": lawful.FixedMagnitudeSignSymmetry(seed=1),
    "bsf": lawful.BatchwiseMagnitudeSignSymmetry(seed=1),
    "wm": lawful.WeightMirror(seed=1),
    "sign": lawful.SignFeedbackAlignment(seed=1),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "name", ["residual", "shared", "reglu", "attention", "mha", "densenet", "relu rnn", "cnn", "batch norm"]
)
def test_no_correct_rule_is_accused(name, rule):
    model, x = build(name)
    check = lawcheck(model, x, rule=RULES[rule])
    assert not check.table or check.ok, check


def test_rules_without_a_potential_have_no_law_and_sign_rules_no_matrix():
    for rule, matrices, neurons in (("fa", 1, 3), ("kp", 1, 3), ("usf", 0, 3), ("wm", 0, 0)):
        model, x = build("residual")
        lawful.attach(model, RULES[rule])
        laws = laws_of(model, x)
        assert (len(laws.of_kind("matrix")), len(laws.of_kind("neuron"))) == (matrices, neurons), rule
    assert "has no potential" in laws.reasons["f1.weight"]


# -- shift and scale ---------------------------------------------------------------------------------------------


def gradients_of_cross_entropy(model, x):
    out = model(x)
    classes = out.shape[1] if out.dim() == 4 else out.shape[-1]
    logits = out.movedim(1, -1).reshape(-1, classes) if out.dim() == 4 else out.reshape(-1, classes)
    target = torch.arange(len(logits)) % classes
    F.cross_entropy(logits, target, label_smoothing=0.1).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def shift_names(laws):
    """The shift laws that hold under any rule."""
    return {f"{law.formula}" for law in laws.of_kind("shift") if isinstance(law, ShiftLaw)}


def test_softmax_shift_laws_hold_under_feedback_alignment():
    model, x = build("residual")
    lawful.attach(model, RULES["fa"])
    laws = laws_of(model, x, output="softmax")
    assert shift_names(laws) == {"Σ_j out.weight[j]", "Σ_j out.bias[j]"}
    assert not shift_names(laws_of(model, x))
    g = gradients_of_cross_entropy(model, x)
    for law in laws.of_kind("shift"):
        assert float((law.rate(g, g).abs() / law.magnitude(g, g)).max()) < 1e-12


def test_a_pre_norm_transformer_shifts_and_scales():
    model, x = build("pre-norm")
    for norm in (model.n1, model.n2, model.nf):
        norm.eps = 0.0
    laws = laws_of(model, x, output="softmax")
    writers = {
        "Σ_j emb.weight[:, j]",
        "Σ_j at.out_proj.weight[j]",
        "Σ_j at.out_proj.bias[j]",
        "Σ_j f2.weight[j]",
        "Σ_j f2.bias[j]",
    }
    head = {"Σ_j head.weight[j]", "Σ_j head.bias[j]"}
    assert shift_names(laws) == writers | head | {"at.in_proj_bias[8:16][j]"}
    (stream,) = laws.of_kind("scale")
    assert stream.name == "emb + at.out_proj + f2"
    g = gradients_of_cross_entropy(model, x)
    theta = {n: p.detach() for n, p in model.named_parameters()}
    assert float((stream.rate(theta, g).abs() / stream.magnitude(theta, g)).max()) < 1e-10
    for law in laws.of_kind("shift"):
        scale = law.magnitude(theta, g).max() if "in_proj" not in law.formula else g["at.in_proj_bias"].abs().max()
        assert float(law.rate(theta, g).abs().max() / scale) < 1e-12
    # not each writer on its own
    one = (theta["f2.weight"] * g["f2.weight"]).sum() + (theta["f2.bias"] * g["f2.bias"]).sum()
    assert abs(float(one)) > 1e-4 * float((theta["f2.weight"] * g["f2.weight"]).abs().sum())


def test_in_front_of_a_batch_norm():
    model, x = build("batch norm")
    laws = laws_of(model, x)
    (scale,) = laws.of_kind("scale")
    assert scale.note == "exact as eps → 0"
    assert shift_names(laws) == {"0.bias[j]"}
    theta = {n: p.detach() for n, p in model.named_parameters()}
    g = gradients_of_cross_entropy(model, x)
    assert float(g["0.bias"].abs().max()) < 1e-14
    # exactly: d/dt ½‖W[j]‖² = ε/(v + ε) · γ γ̇
    v = F.conv2d(x, theta["0.weight"], theta["0.bias"]).var((0, 2, 3), unbiased=False)
    exact = 1e-5 / (v + 1e-5) * theta["1.weight"] * g["1.weight"]
    torch.testing.assert_close(scale.rate(theta, g), exact, rtol=1e-6, atol=1e-14)
    assert "eval mode" in laws_of(model.eval(), x).reasons["0.weight"]


# -- reasons -----------------------------------------------------------------------------------------------------


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 3 * g


class WithHidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.c(F.relu(self.b(Hidden.apply(self.a(x)))))


def test_a_function_of_its_own_is_named_and_its_law_left_out_but_lawcheck_locates_it():
    model = WithHidden()
    laws = laws_of(model, torch.randn(4, 3))
    assert [law.name for law in laws] == ["b"]
    assert any("HiddenBackward" in what for what in laws.unknown)
    check = lawcheck(model, torch.randn(4, 3))
    assert not check.ok and check.worst is not None and check.worst.where.startswith("a ")


class WithUnknown(WithHidden):
    def forward(self, x):
        return self.c(F.relu(self.b(torch.cumsum(self.a(x), -1))))


class Mixed(WithHidden):
    def forward(self, x):
        h = self.a(x)
        return self.c(F.relu(self.b(F.relu(h) + h.square())))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.f = nn.Embedding(7, 6), nn.Linear(6, 6)

    def forward(self, tokens):
        return F.linear(F.relu(self.f(self.emb(tokens))), self.emb.weight)


def test_reasons():
    x = torch.randn(4, 3)
    unknown = laws_of(WithUnknown(), x)
    assert unknown.reasons["a.weight"] == "cumsum is unknown" and unknown.unknown == ("cumsum",)
    assert "degrees that differ" in laws_of(Mixed(), x).reasons["a.weight"]
    tied = laws_of(Tied(), torch.randint(0, 7, (2, 3)))
    assert len(tied) == 0 and "two roles" in tied.reasons["f.weight"]
    gelu = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    assert laws_of(gelu).reasons["0.weight"] == "GELU is not homogeneous"
    padded = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ConstantPad1d(1, 0.5), nn.Conv1d(2, 1, 3))
    assert "constant 0.5" in laws_of(padded, torch.randn(1, 1, 9)).reasons["0.weight"]
    zero = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ConstantPad1d(1, 0.0), nn.Conv1d(2, 1, 3))
    assert [law.kind for law in laws_of(zero, torch.randn(1, 1, 9))] == ["neuron", "matrix"]


class Across(nn.Module):
    """Attention over another sequence, with projections of their own and no bias, behind two recurrent layers."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(3, 4, num_layers=2, nonlinearity="relu")
        self.m, self.c = nn.MultiheadAttention(4, 2, kdim=3, vdim=3, bias=False), nn.Linear(4, 2)

    def forward(self, x):
        return self.c(self.m(self.rnn(x)[0], x, x)[0])


@pytest.mark.parametrize("name", [*EXPECTED, "across"])
def test_no_two_conserved_numbers_have_one_name(name):
    """``values()`` would lose one of them."""
    model, x = (Across(), torch.randn(5, 2, 3)) if name == "across" else build(name)
    laws = laws_of(model, x)
    assert len(laws.values(model)) == sum(len(law.names) for law in laws)
    if name == "across":
        assert {"rnn.l0", "rnn.l1", "m.query + m.key", "m.value"} <= {law.name for law in laws}
