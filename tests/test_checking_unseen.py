"""lawcheck's shift and scale laws: faults in norms and in attention, which neuron laws cannot see, are caught."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lawful
from lawful.checking import lawcheck

S = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Normed(torch.autograd.Function):
    """x̂ = (x − μ)/√(v + ε) over the axes ``dims``; ``fault`` names what the backward pass forgets."""

    @staticmethod
    def forward(ctx, x, forward, dims, eps, fault):
        ctx.save_for_backward(x)
        ctx.dims, ctx.eps, ctx.fault = dims, eps, fault
        return forward(x)

    @staticmethod
    def backward(ctx, delta):
        (x,) = ctx.saved_tensors
        dims = ctx.dims
        size = (x.var(dims, unbiased=False, keepdim=True) + (0 if ctx.fault == "eps" else ctx.eps)).sqrt()
        z = (x - x.mean(dims, keepdim=True)) / size
        mean, slope = delta.mean(dims, keepdim=True), (delta * z).mean(dims, keepdim=True)
        if ctx.fault == "mean":
            mean = 0 * mean
        if ctx.fault == "variance":
            slope = 0 * slope
        error = (delta - mean - z * slope) / size
        return (delta / size if ctx.fault == "both" else error), None, None, None, None


class OwnLayer(nn.LayerNorm):
    def __init__(self, size, fault, eps=1e-5):
        super().__init__(size, eps)
        self.fault = fault

    def forward(self, x):
        normed = Normed.apply(
            x, lambda y: F.layer_norm(y, self.normalized_shape, eps=self.eps), (-1,), self.eps, self.fault
        )
        return normed * self.weight + self.bias


class OwnBatch(nn.BatchNorm2d):
    def __init__(self, size, fault, eps=1e-5):
        super().__init__(size, eps)
        self.fault = fault

    def forward(self, x):
        def forward(y):
            return F.batch_norm(y, None, None, training=True, eps=self.eps)

        normed = Normed.apply(x, forward, (0, 2, 3), self.eps, self.fault)
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


class OwnGroup(nn.GroupNorm):
    def __init__(self, groups, size, fault, eps=1e-5):
        super().__init__(groups, size, eps)
        self.fault = fault

    def forward(self, x):
        grouped = x.unflatten(1, (self.num_groups, -1))
        normed = Normed.apply(
            x.unflatten(1, (self.num_groups, -1)),
            lambda y: F.group_norm(y.flatten(1, 2), self.num_groups, eps=self.eps).reshape(grouped.shape),
            (1, 2, 3, 4) if self.fault == "groups" else (2, 3, 4),
            self.eps,
            None if self.fault == "groups" else self.fault,
        )
        return normed.flatten(1, 2) * self.weight[:, None, None] + self.bias[:, None, None]


def layer(fault, eps=1e-5):
    return nn.Sequential(nn.Linear(5, 6), OwnLayer(6, fault, eps), nn.ReLU(), nn.Linear(6, 2)), S


def batch(fault, eps=1e-5):
    return nn.Sequential(nn.Conv2d(2, 4, 3), OwnBatch(4, fault, eps), nn.ReLU(), nn.Conv2d(4, 2, 3)), X


def group(fault, eps=1e-5):
    return nn.Sequential(nn.Conv2d(2, 4, 3), OwnGroup(2, 4, fault, eps), nn.ReLU(), nn.Conv2d(4, 2, 3)), X


def violated(check, kind):
    return any(row.violation > 1e-6 for row in check.table if row.where.endswith(f"({kind})"))


@pytest.mark.parametrize("make", [layer, batch, group])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_a_correct_norm_of_ones_own_passes_and_its_laws_are_tested(make, eps):
    check = lawcheck(*make(None, eps))
    assert check.ok, check
    assert {"0 (scale)", "0 (shift)"} <= {row.where for row in check.table}
    assert all(what.startswith("gradients of 0.bias, 0.weight") for what in check.unchecked)


@pytest.mark.parametrize(
    ("make", "fault", "kinds"),
    [
        (layer, "mean", {"shift", "scale"}),
        (layer, "variance", {"scale"}),
        (layer, "both", {"shift", "scale"}),
        (batch, "mean", {"shift", "scale"}),
        (batch, "variance", {"scale"}),
        (batch, "both", {"shift", "scale"}),
        (group, "mean", {"shift", "scale"}),
        (group, "variance", {"scale"}),
        (group, "groups", {"shift", "scale"}),
        (layer, "eps", {"scale"}),
        (batch, "eps", {"scale"}),
        (group, "eps", {"scale"}),
    ],
)
def test_a_backward_pass_that_forgets_a_term_is_caught_and_located(make, fault, kinds):
    check = lawcheck(*make(fault, 0.1))
    assert not check.ok
    assert {kind for kind in ("shift", "scale", "neuron") if violated(check, kind)} == kinds
    assert check.worst is not None and check.worst.where.startswith("0 (")


class Scaled(torch.autograd.Function):
    """γ ⊙ x̂; the faulty backward pass gives γ a gradient of the wrong sign."""

    @staticmethod
    def forward(ctx, x, gamma, fault):
        ctx.save_for_backward(x, gamma)
        ctx.fault = fault
        return x * gamma

    @staticmethod
    def backward(ctx, delta):
        x, gamma = ctx.saved_tensors
        slope = (delta * x).flatten(0, -2).sum(0)
        return delta * gamma, -slope if ctx.fault else slope, None


@pytest.mark.parametrize("fault", [False, True])
def test_a_gradient_of_gamma_of_the_wrong_sign(fault):
    class Norm(nn.LayerNorm):
        def forward(self, x):
            return Scaled.apply(F.layer_norm(x, (6,), eps=0.1), self.weight, fault) + self.bias

    check = lawcheck(nn.Sequential(nn.Linear(5, 6), Norm(6), nn.ReLU(), nn.Linear(6, 2)), S)
    assert check.ok is not fault
    assert {row.where for row in check.table if row.violation > 1e-6} == ({"1 (neuron)"} if fault else set())


def test_a_norm_without_a_module_attribute_for_its_eps_is_tested():
    class Fixed(nn.Module):
        def forward(self, x):
            return F.layer_norm(x, (6,), eps=0.1)

    check = lawcheck(nn.Sequential(nn.Linear(5, 6), Fixed(), nn.ReLU(), nn.Linear(6, 2)), S)
    assert check.ok, check
    assert "0 (scale)" in {row.where for row in check.table} and check.unchecked == ()


def test_a_norm_whose_eps_cannot_be_known_is_named_and_not_accused():
    class Single(nn.Module):
        """An RMS norm that computes in single precision, as language models have it."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x):
            z = x.float()
            return self.weight * (z * torch.rsqrt(z.square().mean(-1, keepdim=True) + 1e-3)).to(x.dtype)

    class Inside(torch.autograd.Function):
        """A layer norm and a factor in one."""

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return 2 * F.layer_norm(x, (6,), eps=0.1)

        @staticmethod
        def backward(ctx, delta):
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                return torch.autograd.grad(2 * F.layer_norm(x, (6,), eps=0.1), x, delta)

    class Fused(nn.Module):
        def forward(self, x):
            return Inside.apply(x)

    for norm, why in ((Single(), "module '1' rounds to lower precision"), (Fused(), "layer_norm in module '1'")):
        check = lawcheck(nn.Sequential(nn.Linear(5, 6), norm, nn.ReLU(), nn.Linear(6, 2)), S)
        assert check.ok, check
        (unchecked,) = (what for what in check.unchecked if not what.startswith("gradients"))
        assert unchecked.startswith("0 (scale)") and why in unchecked
        assert "unchecked  0 (scale)" in repr(check)


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.LayerNorm(6, 0.1),
        lambda: nn.RMSNorm(6, 0.1),
        lambda: nn.GroupNorm(2, 6, 0.1),
        lambda: nn.BatchNorm1d(6, 0.1),
        lambda: nn.LayerNorm(6, elementwise_affine=False),
    ],
)
@pytest.mark.parametrize("rule", [lawful.FeedbackAlignment(seed=0), lawful.WeightMirror(seed=0)])
def test_no_norm_is_accused(norm, rule):
    model = nn.Sequential(nn.Linear(5, 6), norm(), nn.ReLU(), nn.Linear(6, 2))
    check = lawcheck(model, S[0], rule=rule)
    assert check.ok, check
    assert "0 (scale)" in {row.where for row in check.table}


def test_gradients_that_vanish_altogether_are_rounding_and_accuse_nobody():
    """A layer norm of two channels leaves ±1: nothing in front of it has a gradient but by its eps."""
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2), nn.LayerNorm(2), nn.Linear(2, 3))
    check = lawcheck(model, S)
    assert not violated(check, "scale") and not violated(check, "shift")


def test_biases_that_a_batch_norm_holds_still_are_rounding_and_accuse_nobody():
    """Both sides of b_i − B_{i+1}ᵀ b_{i+1} vanish: there is nothing to divide by."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    check = lawcheck(model, S[0], rule=lawful.FeedbackAlignment(seed=0))
    assert check.ok, check
    assert "0 (bias)" in {row.where for row in check.table}


def test_frozen_layers_and_rows_of_padding_accuse_nobody():
    model = nn.Sequential(nn.Embedding(7, 6, padding_idx=0), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    model[1].weight.requires_grad_(False)
    assert lawcheck(model, torch.tensor([[0, 1, 2], [3, 0, 0]])).ok
    assert not model[1].weight.requires_grad


# -- attention -----------------------------------------------------------------------------------------------------


class Softmax(torch.autograd.Function):
    """Softmax over keys; the faulty backward pass forgets the sum, or masks the error but not the sum."""

    @staticmethod
    def forward(ctx, score, fault):
        weights = score.softmax(-1)
        ctx.save_for_backward(weights)
        ctx.fault = fault
        return weights

    @staticmethod
    def backward(ctx, delta):
        (weights,) = ctx.saved_tensors
        error = weights * (delta - (weights * delta).sum(-1, keepdim=True))
        if ctx.fault == "sum":
            error = weights * delta
        if ctx.fault == "mask":
            error = error.tril(-1)
        return error, None


class Mixed(torch.autograd.Function):
    """softmax(q kᵀ) v as one operation, as fused kernels are."""

    @staticmethod
    def forward(ctx, q, k, v, fault):
        ctx.save_for_backward(q, k, v)
        ctx.fault = fault
        return F.scaled_dot_product_attention(q, k, v)

    @staticmethod
    def backward(ctx, delta):
        with torch.enable_grad():
            q, k, v = (x.detach().requires_grad_() for x in ctx.saved_tensors)
            score = q @ k.mT / q.shape[-1] ** 0.5
            y = Softmax.apply(score, ctx.fault) @ v
            errors = torch.autograd.grad(y, (q, k, v), delta)
        if ctx.fault == "heads":
            errors = errors[0], errors[1].flip(1), errors[2]
        return *errors, None


class Attention(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 3)
        self.fault = fault

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(Mixed.apply(q, k, v, self.fault).transpose(1, 2).flatten(2))


def test_fused_attention():
    check = lawcheck(Attention(None), S)
    assert check.ok, check
    assert {"k (shift)", "q + k (matrix)", "v (matrix)"} <= {row.where for row in check.table}


@pytest.mark.parametrize(("fault", "kind"), [("sum", "shift"), ("mask", "shift"), ("heads", "matrix")])
def test_faults_of_fused_attention(fault, kind):
    check = lawcheck(Attention(fault), S)
    assert violated(check, kind)
    assert all(row.violation < 1e-10 for row in check.table if row.where.startswith("v "))


def test_the_output_layer_against_softmax():
    """Without class weights that forget a class, Σ_k W[k, :] stands still; an output layer that drops a class fails."""

    class Drops(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x + 0.0

        @staticmethod
        def backward(ctx, g):
            return torch.cat([g[..., :1] * 0, g[..., 1:]], -1)

    class Model(nn.Module):
        def __init__(self, drops):
            super().__init__()
            self.a, self.b, self.drops = nn.Linear(5, 6), nn.Linear(6, 4), drops

        def forward(self, x):
            out = self.b(F.relu(self.a(x)))
            return Drops.apply(out) if self.drops else out

    good, bad = lawcheck(Model(False), S), lawcheck(Model(True), S)
    assert good.ok and "b (shift)" in {row.where for row in good.table}
    assert violated(bad, "shift")


@pytest.mark.parametrize("last", [True, False])
def test_errors_sum_to_zero_over_the_classes_only(last):
    """The fault sends Σ over positions of the error to one class: it is seen unless that sum is taken off too."""

    class Leaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x + 0.0

        @staticmethod
        def backward(ctx, g):
            error = (g if last else g.mT).clone()  # (n, positions, classes)
            error[..., 0] += error[..., 0].mean(1, keepdim=True)
            return error if last else error.mT

    class Model(nn.Module):
        def __init__(self, fault):
            super().__init__()
            self.a, self.b = (nn.Linear(5, 6), nn.Linear(6, 4)) if last else (nn.Conv1d(6, 6, 1), nn.Conv1d(6, 4, 1))
            self.fault = fault

        def forward(self, x):
            out = self.b(F.relu(self.a(x)))
            return Leaks.apply(out) if self.fault else out

    good, bad = lawcheck(Model(False), S), lawcheck(Model(True), S)
    assert good.ok and "b (shift)" in {row.where for row in good.table}
    assert violated(bad, "shift")


@pytest.mark.parametrize("rule", [None, lawful.FeedbackAlignment(seed=0), lawful.KolenPollack(seed=0)])
@pytest.mark.parametrize(
    ("frozen", "reasons"),
    [
        ("0.weight", {"0.weight": "0.weight is frozen"}),
        ("0.bias", {"0.weight": "0.bias is frozen"}),
        ("2", {"0.weight": "2.weight is frozen, and reads it", "2.weight": "2.weight is frozen; 2.bias is frozen"}),
        ("3.bias", {"3.weight": "3.bias is frozen"}),
        ("4.weight", {"3.weight": "4.weight is frozen, and reads it", "4.weight": "4.weight is frozen"}),
        ("6", {"4.weight": "6.weight is frozen, and reads it", "6.weight": "6.weight is frozen; 6.bias is frozen"}),
    ],
)
def test_a_frozen_layer_is_the_reason_and_accuses_nobody(frozen, reasons, rule):
    model = nn.Sequential(
        *(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    )
    if rule is not None:
        lawful.attach(model, rule)
    for name, p in model.named_parameters():
        p.requires_grad_(not name.startswith(frozen))
    check = lawcheck(model, S[0])
    assert check.ok, check
    found = lawful.laws_of(model, S[0].float())
    assert {site: found.reasons[site] for site in reasons} == reasons
    assert not any(name.startswith(frozen) for law in found for name in law.parameters)
