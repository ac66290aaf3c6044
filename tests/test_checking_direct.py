"""lawcheck and direct rules: every deliberate fault of the backward pass is caught, and no correct rule is accused."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lawful
from lawful.attachment import direct, direct_kernel
from lawful.attachment.direct_kernel import Tap
from lawful.checking import lawcheck
from lawful.rules.direct_base import DirectRule

WIDTH = 4


class SignedError(DirectRule):
    """A user's own rule, whose signal is not linear in the error."""

    name: ClassVar[str] = "signed"

    def signal(self, error, state):
        return torch.sign(error) @ state["D"]


RULES = [
    lawful.DirectFeedbackAlignment,
    lawful.DirectRandomTargetProjection,
    lawful.MonotoneDFA,
    lawful.SharedProjection,
    SignedError,
]


def mlp(activation=nn.ReLU):
    """All widths are equal, so that every fault of shapes runs."""
    torch.manual_seed(0)
    layers = [module for _ in range(2) for module in (nn.Linear(WIDTH, WIDTH), activation())]
    return nn.Sequential(*layers, nn.Linear(WIDTH, WIDTH))


def check(model=None, rule=lawful.DirectFeedbackAlignment, x=None, **options):
    x = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(1)) if x is None else x
    return lawcheck(mlp() if model is None else model, x, rule=rule(seed=3), **options)


def conv():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.LeakyReLU(0.1)),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


class Block(nn.Module):
    def __init__(self, activation, residual):
        super().__init__()
        self.norm, self.at = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.f1, self.f2 = nn.Linear(8, 12), nn.Linear(12, 8)
        self.activation, self.residual = activation, residual

    def forward(self, x):
        y = self.norm(x)
        y = self.at(y, y, y, need_weights=False)[0]
        y = x + y if self.residual else y
        z = self.f2(self.activation(self.f1(y)))
        return y + z if self.residual else z


class Transformer(nn.Module):
    def __init__(self, activation=F.relu, residual=False):
        super().__init__()
        self.emb, self.head = nn.Embedding(7, 8), nn.Linear(8, 7)
        self.blocks = nn.ModuleList([Block(activation, residual) for _ in range(2)])

    def forward(self, tokens):
        h = self.emb(tokens)
        for block in self.blocks:
            h = block(h)
        return self.head(h)


@pytest.mark.parametrize("rule", RULES)
def test_every_hidden_layer_is_checked(rule):
    result = check(rule=rule)
    assert result.ok, result
    where = {line.where for line in result.table}
    assert {"0 → tap 1 (neuron)", "2 → tap 3 (neuron)"} <= where
    assert result.laws.of_kind("neuron")[0].formula == ("½‖0.weight[j]‖² + ½‖0.bias[j]‖² − ⟨V[:, j], D[:, j]⟩ of tap 1")


@pytest.mark.parametrize("rule", RULES)
def test_convolutions_and_transformers(rule):
    torch.manual_seed(0)
    result = lawcheck(conv(), torch.randn(3, 2, 8, 8), rule=rule(taps=["0", "1"]))
    assert result.ok, result
    assert {"0.0 → tap 0 (neuron)", "1.0 → tap 1 (neuron)"} <= {line.where for line in result.table}
    tokens = torch.randint(0, 7, (3, 5))
    result = lawcheck(Transformer(), tokens, rule=rule())
    assert result.ok, result
    where = {line.where for line in result.table}
    assert {"blocks.0.f2 → tap blocks.0 (neuron)", "blocks.0.f2 → tap blocks.0 (matrix)"} <= where
    assert {"blocks.1.f1 (neuron)", "blocks.0.at.value (matrix)"} <= where  # inside a block: backpropagation


def test_a_site_that_is_not_homogeneous_says_why():
    result = lawcheck(
        Transformer(F.gelu, residual=True), torch.randint(0, 7, (3, 5)), rule=lawful.DirectFeedbackAlignment()
    )
    assert result.ok, result
    assert result.laws.reasons["blocks.0.f1.weight"] == "GELU is not homogeneous"
    assert check(mlp(nn.Tanh)).laws.reasons["0.weight"] == "tanh is not homogeneous"


def test_a_path_around_a_tap_is_balanced_too():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.out = (nn.Linear(4, 4) for _ in range(4))
            self.act, self.block = nn.ReLU(), nn.ReLU()

        def forward(self, x):
            h = self.act(self.a(x))
            return self.out(self.c(h) + self.block(self.b(h)))

    model = Around()
    lawful.attach(model, lawful.DirectFeedbackAlignment(taps=["block"], output="out"), strict=False)
    result = lawcheck(model, torch.randn(5, 4))
    assert result.ok, result
    where = {line.where for line in result.table if "neuron" in line.where}
    assert where == {"a (neuron)", "b → tap block (neuron)"}  # c's sum holds the cut block, whose share nobody knows


def test_a_block_changed_in_place_by_the_next():
    model = nn.Sequential(nn.Linear(4, 5), nn.Identity(), nn.ReLU(inplace=True), nn.Linear(5, 3))
    result = lawcheck(model, torch.randn(6, 4), rule=lawful.DirectFeedbackAlignment(taps=["1"]))
    assert result.ok, result
    assert "0 → tap 1 (matrix)" in {line.where for line in result.table}


def test_a_shared_block_has_a_readout_per_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.a, self.b, self.out = nn.ReLU(), *(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            return self.out(self.act(self.b(self.act(self.a(x)))))

    result = lawcheck(Twice(), torch.randn(5, 4), rule=lawful.DirectFeedbackAlignment(taps=["act"]))
    assert result.ok, result
    assert {"a → tap act (neuron)", "b → tap act#1 (neuron)"} <= {line.where for line in result.table}


def test_an_attached_model_is_copied_before_and_after_its_first_pass():
    for rule in RULES:
        model = mlp()
        lawful.attach(model, rule(seed=3))
        assert lawcheck(model).ok
        model(torch.randn(2, WIDTH))
        before = {name: b.clone() for name, b in model.named_buffers()}
        assert lawcheck(model).ok
        assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
        assert sum(len(module._forward_hooks) for module in model.modules()) == 4  # the attachment's own


# -- faults ------------------------------------------------------------------------------------------------------------


def signal_with(change):
    """A fault in the signal of a tap: (rule's signal, error, D) -> another one."""

    def faulty(tap, error, state):
        return change(lambda e, D=state["D"]: tap.signal(e, {"D": D}), error, state["D"]).reshape(tap.shape)

    return lambda patch: patch.setattr(Tap, "__call__", faulty)


def handing_out(change):
    """A fault in who gets what: (e, signals…) -> other ones."""
    right = direct_kernel._compute

    def faulty(taps, needs):
        compute = right(taps, needs)

        def shuffled(error, *tensors):
            first, *signals = compute(error, *tensors)
            return change(first, signals)

        return shuffled

    return lambda patch: patch.setattr(direct_kernel, "_compute", faulty)


def states_rolled(patch):
    right = direct_kernel._compute

    def faulty(taps, needs):
        def compute(error, *tensors):
            blocks, states = tensors[: len(taps)], tensors[len(taps) :]
            return right(taps, needs)(error, *blocks, *states[1:], *states[:1])

        return compute

    patch.setattr(direct_kernel, "_compute", faulty)


FAULTS = {
    "D transposed": signal_with(lambda s, e, D: s(e, D.T)),
    "D of another tap": states_rolled,
    "D redrawn at every use": signal_with(lambda s, e, D: s(e, torch.randn_like(D))),
    "D with the wrong sign": signal_with(lambda s, e, D: -s(e)),
    "D rounded to half precision": signal_with(lambda s, e, D: s(e, D.half().double())),
    "D with a row missing": signal_with(lambda s, e, D: e[:, 1:] @ D[1:]),
    "error averaged, not summed": signal_with(lambda s, e, D: s(e) / len(e)),
    "error of another example": signal_with(lambda s, e, D: s(e).roll(1, 0)),
    "error clipped": signal_with(lambda s, e, D: s(e).clamp(-0.1, 0.1)),
    "error with noise": signal_with(lambda s, e, D: s(e) + 1e-6 * torch.randn_like(e)),
    "signals handed to the wrong blocks": handing_out(lambda e, signals: (e, *signals[::-1])),
    "signal dropped at one block": handing_out(lambda e, signals: (e, torch.zeros_like(e), *signals[1:])),
    "error doubled on its way to the output layer": handing_out(lambda e, signals: (2 * e, *signals)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_the_signal_is_caught(fault, monkeypatch):
    FAULTS[fault](monkeypatch)
    result = check(rule=lambda seed: lawful.DirectFeedbackAlignment(seed=seed))
    assert result.worst is not None and result.worst.violation > 1e-8, result


def test_a_block_that_is_not_cut_off_is_refused(monkeypatch):
    monkeypatch.setattr(direct, "_detach", lambda tap, output: (output, output))
    with pytest.raises(lawful.LawfulError, match="leak around"):
        check()


def test_an_error_taken_before_the_loss_scale_is_caught(monkeypatch):
    scaled = {"loss_fn": lambda out: 1024 * out.square().mean()}
    assert check(**scaled).ok
    signal_with(lambda s, e, D: s(e / 1024))(monkeypatch)
    assert not check(**scaled).ok


class Layer(nn.Linear):
    """A linear layer with a backward pass of its own."""

    fault = ""

    def forward(self, x):
        return Affine.apply(x, self.weight, self.bias, self.fault)


class Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, W, b, fault):
        ctx.save_for_backward(a, W)
        ctx.fault = fault
        return a @ W.T + b

    @staticmethod
    def backward(ctx, delta):
        a, W = ctx.saved_tensors
        a = {"another activation": a.roll(1, 1), "averaged": a / len(a)}.get(ctx.fault, a)
        return delta @ W, delta.T @ a, 0 * delta.sum(0) if ctx.fault == "bias dropped" else delta.sum(0), None


class Slope(torch.autograd.Function):
    """ReLU whose derivative has been forgotten."""

    @staticmethod
    def forward(ctx, x):
        return x.relu()

    @staticmethod
    def backward(ctx, g):
        return g


class Forgetful(nn.ReLU):
    def forward(self, x):
        return Slope.apply(x)


@pytest.mark.parametrize("fault", ["", "another activation", "averaged", "bias dropped"])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_faults_of_one_layer_are_caught_and_located(fault, place):
    model = mlp()
    model[place] = Layer(WIDTH, WIDTH)
    model[place].fault = fault
    result = check(model)
    # the output layer's own gradients are balanced against those of the last hidden layer
    site = {0: "0 → tap 1 (neuron)", 2: "2 → tap 3 (neuron)", 4: "2 (neuron)"}[place]
    worst = {line.where: line.violation for line in result.table}
    if fault == "bias dropped" and place == 4:  # no law of a ReLU net holds it
        assert result.ok
    else:
        assert (worst[site] > 1e-3) == bool(fault), result
        assert result.ok == (not fault)


def test_a_forgotten_derivative_is_caught_and_located():
    model = mlp()
    model[1] = Forgetful()
    worst = {line.where: line.violation for line in check(model).table}
    assert worst["0 → tap 1 (neuron)"] > 1e-3 and worst["2 → tap 3 (neuron)"] < 1e-10
