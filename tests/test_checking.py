"""lawcheck must catch every deliberate fault of a feedback rule's backward pass, and accuse no correct one."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lawful
from lawful.checking import assert_lawful, lawcheck


class Affine(torch.autograd.Function):
    """h = a Wᵀ + b with feedback B; ``fault`` names what is wrong with the backward pass."""

    @staticmethod
    def forward(ctx, a, W, b, B, fault):
        ctx.save_for_backward(a, W, B)
        ctx.fault = fault
        return a @ W.T + b

    @staticmethod
    def backward(ctx, delta):
        a, W, B = ctx.saved_tensors
        right = {
            "a": lambda: delta @ B,
            "W": lambda: delta.T @ a,
            "b": lambda: delta.sum(0),
        }
        wrong = {
            "B transposed": {"a": lambda: delta @ B.T},
            "B replaced by W": {"a": lambda: delta @ W},
            "B with the wrong sign": {"a": lambda: -(delta @ B)},
            "B scaled": {"a": lambda: 2 * (delta @ B)},
            "B rounded to half precision": {"a": lambda: delta @ B.half().double()},
            "B redrawn at every use": {"a": lambda: delta @ torch.randn_like(B)},
            "B with a row missing": {"a": lambda: delta[:, 1:] @ B[1:]},
            "B with rows swapped": {"a": lambda: delta @ B.flip(0)},
            "B normalised": {"a": lambda: delta @ (B / B.norm())},
            "W and B mixed": {"a": lambda: delta @ (0.9 * B + 0.1 * W)},
            "error averaged over the batch": {"a": lambda: (delta @ B).mean(0, keepdim=True).expand_as(a)},
            "error of another sample": {"a": lambda: (delta @ B).roll(1, 0)},
            "error clipped": {"a": lambda: (delta @ B).clamp(-0.5, 0.5)},
            "error with noise": {"a": lambda: delta @ B + 1e-6 * torch.randn_like(a)},
            "error dropped": {"a": lambda: torch.zeros_like(a)},
            "bias gradient dropped": {"b": lambda: torch.zeros_like(delta[0])},
            "bias gradient averaged": {"b": lambda: delta.mean(0)},
            "bias gradient of the wrong sign": {"b": lambda: -delta.sum(0)},
            "weight gradient averaged": {"W": lambda: delta.T @ a / len(a)},
            "weight gradient halved": {"W": lambda: delta.T @ a / 2},
            "weight gradient of the wrong sign": {"W": lambda: -(delta.T @ a)},
            "weight gradient with decay in it": {"W": lambda: delta.T @ a + 1e-4 * W},
            "weight gradient off by an orthogonal part": {"W": lambda: delta.T @ a + _orthogonal(W)},
            "weight gradient transposed": {"W": (delta.T @ a).T.clone},
            "weight gradient without the last sample": {"W": lambda: delta[:-1].T @ a[:-1]},
        }
        rules = {**right, **wrong.get(ctx.fault, {})}
        return rules["a"](), rules["W"](), rules["b"](), None, None


def _orthogonal(W):
    other = W.roll(1, 1)
    return other - (other * W).sum(1, keepdim=True) / (W * W).sum(1, keepdim=True) * W


class Layer(nn.Linear):
    def __init__(self, size, fault=None):
        super().__init__(size, size)
        self.register_buffer("B", torch.randn(size, size))
        self.fault = fault

    def forward(self, x):
        return Affine.apply(x, self.weight, self.bias, self.B, self.fault)


class Slope(torch.autograd.Function):
    """ReLU whose derivative has been forgotten."""

    @staticmethod
    def forward(ctx, x):
        return x.relu()

    @staticmethod
    def backward(ctx, g):
        return g


class Forgetful(nn.Module):
    def forward(self, x):
        return Slope.apply(x)


def net(fault=None, activation=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), activation(), Layer(4, fault), nn.ReLU(), nn.Linear(4, 3))


def check(fault=None, activation=nn.ReLU):
    model = net(fault, activation)
    return lawcheck(model, torch.randn(6, 4), feedback={"2.weight": model[2].B})


def test_the_correct_layer_passes():
    result = check()
    assert result.ok, result
    assert {line.what for line in result.table} == {"identity", "gradient", "potential"}


FAULTS = [
    "B transposed",
    "B replaced by W",
    "B with the wrong sign",
    "B scaled",
    "B rounded to half precision",
    "B redrawn at every use",
    "B with a row missing",
    "B with rows swapped",
    "B normalised",
    "W and B mixed",
    "error averaged over the batch",
    "error of another sample",
    "error clipped",
    "error with noise",
    "error dropped",
    "bias gradient dropped",
    "bias gradient averaged",
    "bias gradient of the wrong sign",
    "weight gradient averaged",
    "weight gradient halved",
    "weight gradient of the wrong sign",
    "weight gradient with decay in it",
    "weight gradient off by an orthogonal part",
    "weight gradient transposed",
    "weight gradient without the last sample",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_caught(fault):
    assert not check(fault).ok


@pytest.mark.parametrize("fault", [f for f in FAULTS if f not in ("weight gradient off by an orthogonal part",)])
def test_the_identity_alone_catches_all_but_the_orthogonal_fault(fault):
    result = check(fault)
    assert any(line.violation > result.tolerance for line in result.table if line.what == "identity")


def test_a_forgotten_derivative_is_caught_and_located():
    result = check(activation=Forgetful)
    assert not result.ok
    assert any(line.where == "0 (neuron)" and line.violation > 1e-3 for line in result.table)


def test_a_fault_is_located_at_its_site():
    lines = {line.where: line.violation for line in check("B scaled").table if line.what == "identity"}
    assert lines["0 (neuron)"] > 1e-3 and lines["2 (neuron)"] < 1e-10


class WrongPotential(lawful.FeedbackAlignment):
    def potential(self, weight, state):
        return 2 * state["B"] * weight


def test_feedback_and_potential_that_disagree_are_noticed():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    result = lawcheck(model, rule=WrongPotential())
    assert not result.ok
    assert result.worst is not None and result.worst.what == "potential"


class WrongPadding(nn.Conv2d):
    """Convolution whose input error is computed for another padding."""

    def forward(self, x):
        return ConvFault.apply(x, self.weight, self.bias)


class ConvFault(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W, b):
        ctx.save_for_backward(x, W)
        return F.conv2d(x, W, b, padding=1)

    @staticmethod
    def backward(ctx, delta):
        x, W = ctx.saved_tensors
        error = torch.nn.grad.conv2d_input(x.shape, W, delta, padding=1).roll(1, -1)
        return error, torch.nn.grad.conv2d_weight(x, W.shape, delta, padding=1), delta.sum((0, 2, 3))


class WrongHead(nn.Module):
    """Attention that sends the errors of its values back to the other head."""

    def __init__(self):
        super().__init__()
        self.v, self.o = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.o(SwapHeads.apply(self.v(x)))


class SwapHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x + 0.0

    @staticmethod
    def backward(ctx, g):
        return g.roll(4, -1)


def test_faults_of_convolutions_and_heads():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), WrongPadding(3, 2, 3, padding=1))
    assert not lawcheck(model, torch.randn(2, 1, 7, 7)).ok
    assert not lawcheck(WrongHead(), torch.randn(5, 3)).ok


def test_stale_feedback_of_kolen_pollack_is_caught():
    """B written down at the start, while W moved on."""
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    attachment = lawful.attach(model, lawful.KolenPollack(seed=0))
    stale = {"2.weight": attachment.feedback_of("2.weight").clone()}
    with torch.no_grad():
        model[2].weight.add_(0.1)
    assert lawcheck(model).ok
    assert not lawcheck(model, feedback=stale).ok
    C = attachment.state("2.weight")["C"].double()
    assert lawcheck(model, feedback={"2.weight": lambda W: W + C}).ok


class SignOfItsOwn(nn.Linear):
    """Somebody's uSF: B = sign(W) when the error comes back, or when the layer was made."""

    def __init__(self, *sizes, stale):
        super().__init__(*sizes)
        self.register_buffer("old", self.weight.detach().sign() if stale else None)

    def forward(self, x):
        B = self.weight.detach().sign() if self.old is None else self.old
        echo = nn.functional.linear(x, B)
        return nn.functional.linear(x.detach(), self.weight, self.bias) + echo - echo.detach()


@pytest.mark.parametrize("stale", [False, True])
def test_other_peoples_feedback_that_follows_the_weight(stale):
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), SignOfItsOwn(5, 3, stale=stale))
    assert lawcheck(model, feedback={"2.weight": torch.sign}).ok != stale
    assert not lawcheck(model, feedback={"2.weight": lambda W: 2 * W.sign()}).ok
    with pytest.raises(lawful.LawfulError, match="expected the dotted name"):
        lawcheck(model, feedback={"2.weight": lambda W: W.T})


class WrongTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * (1 - y)


class Wrapped(nn.Module):
    def forward(self, x):
        return WrongTanh.apply(x)


@pytest.mark.parametrize("rule", [None, lawful.FeedbackAlignment(), lawful.SignFeedbackAlignment()])
def test_a_derivative_of_the_models_own_is_not_compared_with_itself(rule):
    """No law passes a tanh, so nothing can say that this one is wrong: neither may anything say that it is right."""
    check = lawcheck(nn.Sequential(nn.Linear(3, 4), Wrapped(), nn.Linear(4, 2)), rule=rule)
    assert {line.where for line in check.table if line.what == "gradient"} == {"2.weight", "2.bias"}
    assert any("0.weight" in what and "WrongTanh" in what for what in check.unchecked)
    plain = lawcheck(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), rule=rule)
    assert len([line for line in plain.table if line.what == "gradient"]) == 4 and not plain.unchecked


def test_gradients_without_an_explicit_form_are_named():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.m, self.c = nn.MultiheadAttention(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            return self.c(self.m(x, x, x)[0])

    check = lawcheck(Attending(), torch.randn(5, 2, 4), rule=lawful.FeedbackAlignment())
    assert check.ok and any("m.in_proj_weight" in what for what in check.unchecked)


def test_loss_scaling_missed_at_one_layer():
    model = net("weight gradient halved")
    result = lawcheck(
        model, torch.randn(6, 4), feedback={"2.weight": model[2].B}, loss_fn=lambda out: 2 * out.square().sum()
    )
    assert not result.ok


def test_assert_lawful_and_wrong_arguments():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    assert_lawful(model, rule=lawful.FeedbackAlignment())
    with pytest.raises(AssertionError, match="VIOLATED"):
        assert_lawful(model, feedback={"2.weight": torch.ones(3, 4)})
    with pytest.raises(lawful.LawfulError, match="got both"):
        lawcheck(model, rule=lawful.Backprop(), feedback={})
    with pytest.raises(lawful.LawfulError, match="dotted name"):
        lawcheck(model, feedback={"2.weight": torch.ones(4, 4)})


def test_complex_parameters_are_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    model[2].weight = nn.Parameter(model[2].weight.detach() + 0j)
    with pytest.raises(lawful.LawfulError, match=r"2\.weight is complex \(torch\.complex64\)"):
        lawcheck(model)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, partial(nn.InstanceNorm2d, affine=True)])
def test_inputs_that_no_norm_can_tell_apart_are_refused(norm):
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3), norm(32), nn.ReLU(), nn.Conv2d(32, 9, 1), norm(9), nn.Flatten(), nn.Linear(81, 2)
    )
    with pytest.raises(lawful.LawfulError, match=r"reach \w+_norm do not vary.*torch\.randn(.|\n)*VIOLATED"):
        lawful.lawcheck(model, torch.ones(2, 1, 5, 5), rule=lawful.FeedbackAlignment())
    x = torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    assert lawful.lawcheck(model, x, rule=lawful.FeedbackAlignment()).ok
    model.eval()  # by statistics that were gathered earlier, or its own
    if norm is nn.BatchNorm2d:
        assert lawful.lawcheck(model, torch.ones(2, 1, 5, 5), rule=lawful.FeedbackAlignment()).ok


class Query(nn.Module):
    """A learned query, the same for every example, beside what depends on it."""

    def __init__(self):
        super().__init__()
        self.q, self.norm, self.fc = nn.Parameter(torch.ones(3)), nn.BatchNorm1d(3), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x) + self.norm(self.q.expand(len(x), -1))


def test_a_norm_that_nothing_can_vary_is_no_reason_to_refuse():
    assert lawful.lawcheck(Query(), torch.randn(5, 4)).ok


def test_units_that_are_off_do_not_count_as_inputs_alike():
    """A batch norm behind units that are all off passes on zeros exactly."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Threshold(1e9, 0.0), nn.BatchNorm1d(3), nn.Linear(3, 2))
    assert lawful.lawcheck(model, torch.ones(4, 2)).worst is not None


def test_the_model_is_left_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    before = {n: p.clone() for n, p in model.named_parameters()}
    lawcheck(model, rule=lawful.FeedbackAlignment())
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())
    assert type(model[0]) is nn.Linear


class LowRankUpdate(nn.Linear):
    """W + CA, C = 0 at first: there it computes what ``nn.Linear`` does."""

    def __init__(self, i, o):
        super().__init__(i, o)
        self.A, self.C = nn.Parameter(torch.randn(2, i)), nn.Parameter(torch.zeros(o, 2))

    def forward(self, x):
        return super().forward(x) + x @ self.A.T @ self.C.T


class Scaled(nn.Module):
    """A learned variance has one sign."""

    def __init__(self):
        super().__init__()
        self.a, self.c, self.v = nn.Linear(3, 8), nn.Linear(8, 2), nn.Parameter(torch.ones(8))

    def forward(self, x):
        return self.c(self.a(x) / self.v.sqrt())


def test_a_correct_model_passes_wherever_it_starts():
    x = torch.randn(5, 3)
    for model in (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), LowRankUpdate(4, 2)), Scaled()):
        result = lawcheck(model, x)
        assert result.ok, result


def test_what_no_error_reaches_is_unchecked_and_not_ok():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    B = torch.ones(2, 4)  # but it is backpropagation
    result = lawcheck(model, torch.zeros(1, 3), feedback={"2.weight": B})
    assert not result.ok and any("no error reached it" in line for line in result.unchecked)
    assert not lawcheck(model, torch.randn(3, 3), feedback={"2.weight": B}).ok
    words = nn.Sequential(nn.Embedding(10, 8, padding_idx=0), nn.Linear(8, 2))
    assert lawcheck(words).ok and not lawcheck(words, feedback={"1.weight": torch.ones(2, 8)}).ok
