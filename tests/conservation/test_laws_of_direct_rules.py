"""Laws under direct rules against NumPy: the last hidden layer, linear pairs of layers, and the virtual readout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import lawful
from lawful.conservation.derive import laws_of
from lawful.rules.direct_base import DirectRule

X = np.random.default_rng(0).normal(size=(7, 3))
TARGET = np.random.default_rng(1).normal(size=(7, 2))


def net(activation, widths=(3, 4, 5, 2), seed=0):
    torch.manual_seed(seed)
    layers = [m for i, o in zip(widths, widths[1:], strict=False) for m in (nn.Linear(i, o), activation())]
    return nn.Sequential(*layers[:-1]).double()


def attached(activation, rule=lawful.DirectFeedbackAlignment, widths=(3, 4, 5, 2)):
    model = net(activation, widths)
    attachment = lawful.attach(model, rule(seed=2))
    model(torch.from_numpy(X))
    return model, {tap: D.numpy() for tap, D in attachment.feedback.items()}


def numbers(model):
    return [t.detach().numpy().copy() for layer in (0, 2, 4) for t in (model[layer].weight, model[layer].bias)]


def gradients(theta, D, relu):
    """DFA written out: gradients by name, output error, activations of both hidden layers."""
    W1, b1, W2, b2, W3, b3 = theta
    h1 = X @ W1.T + b1
    a1 = np.maximum(h1, 0) if relu else h1
    h2 = a1 @ W2.T + b2
    a2 = np.maximum(h2, 0) if relu else h2
    e = a2 @ W3.T + b3 - TARGET
    d1 = (e @ D["1"]) * (h1 > 0 if relu else 1)
    d2 = (e @ D["3"]) * (h2 > 0 if relu else 1)
    names = ("0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias")
    grads = (d1.T @ X, d1.sum(0), d2.T @ a1, d2.sum(0), e.T @ a2, e.sum(0))
    return dict(zip(names, grads, strict=True)), e, (a1, a2)


def tensors(values):
    names = ("0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias")
    return {n: torch.from_numpy(v) for n, v in zip(names, values, strict=True)}


def kept(law, theta, grads):
    v = {name: torch.from_numpy(g) for name, g in grads.items()}
    size = law.magnitude(tensors(theta), v)
    return bool((law.rate(tensors(theta), v).abs() <= 1e-12 * size).all()) and float(size.max()) > 0


def test_the_last_hidden_layer_has_the_law_of_feedback_alignment():
    model, D = attached(nn.ReLU)
    theta = numbers(model)
    _, _, W2, b2, W3, _ = theta
    laws = laws_of(model)
    assert [(law.kind, law.name) for law in laws] == [("neuron", "2")]
    expected = 0.5 * (W2**2).sum(1) + 0.5 * b2**2 - (D["3"] * W3).sum(0)
    np.testing.assert_allclose(laws[0].value(tensors(theta)).numpy(), expected, rtol=1e-13)
    assert kept(laws[0], theta, gradients(theta, D, relu=True)[0])


def test_an_earlier_layer_has_none_in_the_weights_alone_and_says_why():
    reasons = laws_of(attached(nn.ReLU)[0]).reasons
    assert set(reasons) == {"0.weight", "4.weight"}
    assert "DirectFeedbackAlignment teaches it at tap '1'" in reasons["0.weight"]
    assert laws_of(attached(nn.Tanh)[0]).reasons["0.weight"] == "tanh is not homogeneous"


def test_the_virtual_readout_is_exact_step_by_step():
    """q = ½‖W[j]‖² + ½b[j]² − ⟨V[:, j], D[:, j]⟩ moves by ½‖Δ‖² alone when V ← V − lr·eᵀa, in every hidden layer."""
    model, D = attached(nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    V = {"1": np.zeros((2, 4)), "3": np.zeros((2, 5))}

    def q():
        theta = numbers(model)
        return [
            0.5 * (W**2).sum(1) + 0.5 * b**2 - (V[t] * D[t]).sum(0)
            for t, W, b in zip("13", theta[:4:2], theta[1:4:2], strict=True)
        ]

    start, ledger = q(), [0.0, 0.0]
    for _ in range(30):
        _, e, activations = gradients(numbers(model), D, relu=True)
        before = numbers(model)
        optimizer.zero_grad()
        (0.5 * (model(torch.from_numpy(X)) - torch.from_numpy(TARGET)).square().sum()).backward()
        optimizer.step()
        after = numbers(model)
        for i, (tap, a) in enumerate(zip("13", activations, strict=True)):
            V[tap] -= 0.02 * e.T @ a
            step = [after[2 * i + k] - before[2 * i + k] for k in (0, 1)]
            ledger[i] = ledger[i] + 0.5 * (step[0] ** 2).sum(1) + 0.5 * step[1] ** 2
    for i in range(2):
        np.testing.assert_allclose(q()[i], start[i] + ledger[i], rtol=1e-12)
        assert np.abs(ledger[i]).max() > 1e-5


@pytest.mark.parametrize("rule", [lawful.DirectFeedbackAlignment, lawful.SharedProjection, lawful.MonotoneDFA])
def test_linear_pairs_of_layers(rule):
    model, D = attached(nn.Identity, rule)
    theta = numbers(model)
    W1, b1, W2, b2, W3, b3 = theta
    laws = {(law.kind, law.name): law for law in laws_of(model) if law.parameters[0].endswith("weight")}
    assert set(laws) == {(kind, site) for kind in ("neuron", "matrix", "range") for site in ("0", "2")}
    M = np.linalg.pinv(D["3"]) @ D["1"]
    np.testing.assert_allclose(D["3"] @ M, D["1"], atol=1e-14)
    for site, W, b, B, above in (("0", W1, b1, M, W2), ("2", W2, b2, D["3"], W3)):
        expected = W @ W.T + np.outer(b, b) - B.T @ above - above.T @ B
        value = laws["matrix", site].value(tensors(theta)).numpy()
        np.testing.assert_allclose(value, expected[np.triu_indices(len(W))], rtol=1e-12, atol=1e-14)
    grads = gradients(theta, D, relu=False)[0]
    assert all(kept(law, theta, grads) for law in laws_of(model))
    shifts = laws_of(model).of_kind("bias")
    for law, bias, tap in zip(shifts, (b1, b2), "13", strict=True):
        np.testing.assert_allclose(law.value(tensors(theta)).numpy(), bias - D[tap].T @ b3, rtol=1e-12)


def test_a_neuron_law_also_where_only_the_layer_above_is_linear():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.Identity(), nn.Linear(5, 2)).double()
    lawful.attach(model, lawful.DirectFeedbackAlignment())
    assert [(law.kind, law.name) for law in laws_of(model).of_kind("neuron", "matrix")] == [
        ("neuron", "0"), ("neuron", "2"), ("matrix", "2")
    ]  # fmt: skip
    assert lawful.lawcheck(model).ok


def test_without_full_row_rank_the_pair_has_no_law():
    """D_2 (3 outputs, 2 neurons) spans no D_1."""
    model = net(nn.Identity, (3, 2, 2, 3))
    lawful.attach(model, lawful.DirectFeedbackAlignment())
    assert [law.name for law in laws_of(model).of_kind("matrix")] == ["2"]
    assert [law.name for law in laws_of(model, output="softmax").of_kind("matrix")] == ["0", "2"]  # Σe = 0: rank 2


def test_the_target_is_not_the_error():
    """DRTP: no law with the output layer, which learns from the error; linear pairs learn from one target."""
    model = net(nn.ReLU)
    lawful.attach(model, lawful.DirectRandomTargetProjection())
    assert len(laws_of(model)) == 0
    model = net(nn.Identity)
    lawful.attach(model, lawful.DirectRandomTargetProjection())
    laws = laws_of(model)
    assert [law.name for law in laws.of_kind("matrix")] == ["0"]
    assert [law.formula for law in laws.of_kind("bias")] == ["0.bias − M(2.weight)ᵀ 2.bias"]
    assert lawful.lawcheck(model).ok


class Bent(DirectRule):
    """A signal that is nearly, but not exactly, e D."""

    name = "bent"

    def signal(self, error, state):
        return (error + 1e-4 * error**2) @ state["D"]


def test_a_rule_of_the_users_own_is_judged_by_its_signal():
    model = net(nn.ReLU)
    lawful.attach(model, Bent())
    assert len(laws_of(model)) == 0 and lawful.lawcheck(model).ok


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor, self.a, self.act, self.b = factor, nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.factor(self.act(self.a(x))))


def test_the_output_layer_must_read_the_tapped_features_themselves():
    for factor, names in ((lambda h: h.reshape(-1, 4), ["a"]), (lambda h: 2 * h, []), (lambda h: h.flip(-1), [])):
        model = Scaled(factor)
        lawful.attach(model, lawful.DirectFeedbackAlignment(taps=["act"]))
        assert [law.name for law in laws_of(model)] == names
        assert lawful.lawcheck(model).ok


class Roll(nn.Module):
    """Shifts half of the channels in time."""

    def forward(self, h):
        return torch.cat([h[..., :2].roll(1, 1), h[..., 2:]], -1)


class Pair(nn.Module):
    """Two tapped linear layers."""

    def __init__(self, second, around):
        super().__init__()
        self.a, self.b, self.head, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 4)
        self.one, self.two, self.around = nn.ReLU(), second, around

    def forward(self, x):
        h = self.b(self.one(self.a(x)))
        y = self.two(h)
        return self.head(torch.relu(y + self.c(h) if self.around else y))


@pytest.mark.parametrize(
    ("second", "around", "sites"),
    [(nn.Identity(), False, {"a"}), (Roll(), False, set()), (nn.Identity(), True, set()), (nn.ReLU(), False, set())],
    ids=["linear", "shifted in time", "heard around its tap", "masked"],
)
def test_the_layer_above_must_hear_its_signal_alone(second, around, sites):
    model, x = Pair(second, around), torch.randn(5, 4, 3)
    lawful.attach(model, lawful.DirectFeedbackAlignment(taps=["one", "two"], output="head"), strict=not around)
    assert {law.name for law in laws_of(model, x).of_kind("neuron") if law.name == "a"} == sites
    assert {law.name for law in laws_of(model, x).of_kind("range")} == ({"b"} if sites else set())
    lines = [line for line in lawful.lawcheck(model, x).table if "matrix" not in line.where]
    assert {"a → tap one (neuron)"} <= {line.where for line in lines}
    assert all(line.violation < 1e-10 for line in lines)


def test_the_ledger_follows_what_is_a_law():
    model, _ = attached(nn.Identity)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.5)
    with lawful.Ledger(model, optimizer) as ledger:
        for _ in range(20):
            optimizer.zero_grad()
            (model(torch.from_numpy(X)) - torch.from_numpy(TARGET)).square().mean().backward()
            optimizer.step()
    assert {law.kind for law in ledger.laws} == {"neuron", "bias"}
    assert float(ledger.residual.max()) < 1e-12
    assert float(ledger.violation.max()) < 1e-12


def write_into_D(module):
    (buffer,) = module.buffers()
    buffer.mul_(2)


def put_another_in_its_place(module):
    ((name, old),) = module._buffers.items()
    new = module._buffers[name] = 2 * old
    while new._version < old._version:  # as often written to
        new.mul_(1)


@pytest.mark.parametrize("change", [write_into_D, put_another_in_its_place])
def test_another_D_changes_the_law(change):
    model, D = attached(nn.Identity)
    laws = {law.name: law for law in laws_of(model).of_kind("neuron")}
    theta = numbers(model)
    before = laws["0"].value(tensors(theta)).numpy()
    M = np.linalg.pinv(D["3"]) @ D["1"]
    change(model[1])
    moved = laws["0"].value(tensors(theta)).numpy() - before
    np.testing.assert_allclose(moved, -(M * theta[2]).sum(0), rtol=1e-9)
