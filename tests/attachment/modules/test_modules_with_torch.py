"""Every kind of leaf beside the rest of PyTorch."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from oracle import assert_same, gradients
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

import lawful
from lawful.errors import DoubleBackwardError


class First(nn.Module):
    """The first output of a module that returns several, whose inputs are made from one."""

    def __init__(self, inner, inputs=None) -> None:
        super().__init__()
        self.inner, self.inputs = inner, inputs

    def forward(self, x):
        out = self.inner(*(self.inputs(x) if self.inputs else (x,)))
        return out[0] if isinstance(out, tuple) else out


def pair(x):
    return x, x + 1


def thrice(x):
    return x, x, x


class Raw(nn.Module):
    """A raw parameter under ``@`` and ``einsum``."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return torch.einsum("...i,oi->...o", torch.tanh(x @ self.mix), self.mix)


lawful.register(Raw, weights=["mix"])

pytestmark = pytest.mark.filterwarnings(
    "ignore:There is a performance drop because we have not yet implemented the batching rule:UserWarning",
    "ignore:The tensor attributes .*_flat_weights:UserWarning",  # torch's own, for every recurrent net it exports
)

KINDS = {
    "Linear": lambda: (nn.Linear(4, 4), (3, 4)),
    "Conv2d": lambda: (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=2), (3, 4, 4, 4)),
    "ConvTranspose1d": lambda: (nn.ConvTranspose1d(4, 4, 3, padding=1), (3, 4, 4)),
    "Bilinear": lambda: (First(nn.Bilinear(4, 4, 4), pair), (3, 4)),
    "attention": lambda: (First(nn.MultiheadAttention(4, 2, batch_first=True), thrice), (3, 5, 4)),
    "encoder layer": lambda: (nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True), (3, 5, 4)),
    "LSTM": lambda: (First(nn.LSTM(4, 4, batch_first=True)), (3, 5, 4)),
    "GRUCell": lambda: (First(nn.GRUCell(4, 4)), (3, 4)),
    "raw": lambda: (Raw(), (3, 4)),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def build(kind, seed=0, dtype=torch.float64):
    """Two leaves with a nonlinearity between them, and a batch."""
    torch.manual_seed(seed)
    inner, shape = KINDS[kind]()
    model = nn.Sequential(inner, nn.Tanh(), copy.deepcopy(inner)).to(dtype)
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    return model, x


def attached(kind, seed=0, dtype=torch.float64, **options):
    model, x = build(kind, seed, dtype)
    return model, lawful.attach(model, lawful.FeedbackAlignment(seed=seed, **options)), x


def parameter_gradients(model, x):
    return {n: g for n, g in gradients(model, x).items() if not n.startswith("input")}


def loss_of(model):
    def loss(parameters, buffers, x):
        out = functional_call(model, (parameters, buffers), (x,))
        return (out**3 / 3 + out).sum()

    return loss


@every_kind
def test_functional_grad_equals_backward(kind):
    model, _, x = attached(kind)
    got = grad(loss_of(model))(dict(model.named_parameters()), dict(model.named_buffers()), x)
    assert_same(got, parameter_gradients(model, x), 1e-12)


@every_kind
def test_vmap_over_an_ensemble_uses_each_members_B(kind):
    models = [attached(kind, seed)[0] for seed in range(2)]
    x = build(kind)[1]
    parameters, buffers = stack_module_state(models)
    got = vmap(grad(loss_of(models[0])), in_dims=(0, 0, None))(parameters, buffers, x)
    for i, model in enumerate(models):
        assert_same({n: g[i] for n, g in got.items()}, parameter_gradients(model, x), 1e-11)


@every_kind
def test_forward_mode_uses_the_true_weights(kind):
    model, attachment, x = attached(kind)
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        tangent = jvp(model, (x,), (v,))[1]
        names = dict(model.named_parameters())
        ones = {n: torch.ones_like(p) for n, p in names.items()}
        weights = jvp(lambda p: functional_call(model, p, (x,)), (names,), (ones,))[1]
        attachment.remove()
        torch.testing.assert_close(tangent, jvp(model, (x,), (v,))[1])
        torch.testing.assert_close(weights, jvp(lambda p: functional_call(model, p, (x,)), (names,), (ones,))[1])


@every_kind
def test_jacrev_sends_errors_through_B(kind):
    model, attachment, x = attached(kind)
    J = jacrev(lambda x: (model(x) ** 3).sum())(x)
    x.requires_grad_()
    torch.testing.assert_close(J, torch.autograd.grad((model(x) ** 3).sum(), x)[0])
    attachment.remove()
    assert not torch.allclose(J, torch.autograd.grad((model(x) ** 3).sum(), x)[0])


@every_kind
def test_second_derivatives_raise(kind):
    model, attachment, x = attached(kind)
    x.requires_grad_()
    for name, parameter in {**dict(model.named_parameters()), "input": x}.items():
        if name in attachment.feedback or name == "input":
            with pytest.raises(DoubleBackwardError, match="remove"):
                torch.autograd.grad((model(x) ** 2).sum(), parameter, create_graph=True)
    with pytest.raises(DoubleBackwardError):
        grad(lambda x: grad(lambda x: (model(x) ** 2).sum())(x).square().sum())(x.detach())


@every_kind
def test_compile_fullgraph(kind):
    model, attachment, x = attached(kind)
    expected = parameter_gradients(model, x)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):  # torch refuses its own recurrent nets without
        got = parameter_gradients(torch.compile(model, fullgraph=True, backend="aot_eager"), x)
    assert_same({n.removeprefix("_orig_mod."): g for n, g in got.items()}, expected, 1e-12)
    attachment.remove()
    plain = parameter_gradients(model, x)
    assert any(not torch.allclose(plain[n], g) for n, g in expected.items())


@every_kind
def test_autocast(kind):
    """With B = W the gradients in bfloat16 are those of autograd in bfloat16.

    torch's own LSTM runs in bfloat16 only where the CPU can (AVX-512); elsewhere its float32 gradients stand in.
    """
    reference_in_bfloat16 = kind != "LSTM" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    (model, _, x), (plain, _) = (
        attached(kind, dtype=torch.float32, init="aligned"),
        build(kind, 0, torch.float32),
    )
    results = []
    for m in (model, plain):
        m.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=m is model or reference_in_bfloat16):
            out = m(x)
        out.float().square().sum().backward()
        results.append((out, [p.grad for p in m.parameters()]))
    assert results[0][0].dtype == (results[1][0].dtype if reference_in_bfloat16 else torch.bfloat16)
    for ours, theirs in zip(results[0][1], results[1][1], strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05 * theirs.abs().max().item())


@every_kind
def test_autocast_sends_errors_through_B(kind):
    """A random B: in bfloat16 the gradients are those of the same attached model in float32, up to rounding."""
    model, _, x = attached(kind, dtype=torch.float32)
    results = []
    for enabled in (True, False):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = model(x)
        out.float().square().sum().backward()
        results.append(parameter_list(model))
    least = 0.01 * max(float(exact.norm()) for exact in results[1])  # a gradient that vanishes is all rounding
    for ours, exact in zip(*results, strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - exact).norm()) <= 0.05 * max(float(exact.norm()), least)


def parameter_list(model):
    return [p.grad.clone() for p in model.parameters()]


@every_kind
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_gradient_checkpointing(kind, reentrant):
    model, _, x = attached(kind)
    expected = gradients(model, x)

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=reentrant)

    got = gradients(Checkpointed(), x)
    assert_same({n.removeprefix("inner."): g for n, g in got.items()}, expected, 0.0)


@every_kind
def test_gradient_accumulation(kind):
    model, _, x = attached(kind)
    model.zero_grad()
    for part in x.split(1):
        out = model(part)
        (out**3 / 3 + out).sum().backward()
    accumulated = {n: p.grad.clone() for n, p in model.named_parameters()}
    assert_same(accumulated, parameter_gradients(model, x), 1e-12)


@every_kind
@pytest.mark.parametrize("make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(kind, make):
    model, _, x = attached(kind)
    twin = make(model)
    assert_same(gradients(twin, x), gradients(model, x), 0.0)
    lawful.attachment_of(twin).remove()
    assert [type(m) for m in twin.modules()] == [type(m) for m in build(kind)[0].modules()]


@every_kind
def test_plain_checkpoints_load_strictly(kind):
    model, _, _ = attached(kind)
    plain, _ = build(kind, seed=3)
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(model.state_dict(), strict=True)


@every_kind
def test_remove_restores_backpropagation_bitwise(kind):
    (model, attachment, x), (plain, _) = attached(kind), build(kind)
    gradients(model, x)
    attachment.remove()
    assert_same(gradients(model, x), gradients(plain, x), 0.0)
    for ours, theirs in zip(model.modules(), plain.modules(), strict=True):
        assert type(ours) is type(theirs) and vars(ours).keys() == vars(theirs).keys()


@every_kind
def test_evaluation_is_bitwise_the_plain_models(kind):
    (model, _, x), (plain, _) = attached(kind), build(kind)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(model.eval()(x), plain.eval()(x))
    assert not model(x).isnan().any()


@every_kind
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad], ids=["grad", "no grad"])
def test_export_of_the_forward_pass(kind, mode):
    model, _, x = attached(kind)
    with mode():
        program = torch.export.export(model.eval(), (x,))
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-12, atol=1e-12)


@every_kind
def test_frozen_weights_still_pass_errors_on(kind):
    model, _, x = attached(kind)
    expected = gradients(model, x)
    for parameter in model[2].parameters():
        parameter.requires_grad_(False)
    got = gradients(model, x)
    assert_same(got, {n: g for n, g in expected.items() if n in got}, 1e-13)
    assert any(n.startswith("0.") for n in got)
