"""Every registered rule beside the rest of PyTorch: each feature computes what the attached model does plainly."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

import lawful
from cases import MLP
from lawful.rules.direct_base import DirectRule
from lawful.rules.registry import RULES, parse_rule

CASES = [MLP((4, 5, 6, 3)), MLP((4, 7, 3), activation="tanh", bias=False)]
OPTIONS = {"low-rank-fa": ":rank=2", "sparse-fa": ":density=0.7", "rho-fa": ":rho=0.5"}
EVERY = [name for name in RULES if name != "bp"]
LAYERWISE = [name for name in EVERY if not isinstance(parse_rule(name + OPTIONS.get(name, "")), DirectRule)]

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_rule = pytest.mark.parametrize("name", EVERY)
layerwise = pytest.mark.parametrize("name", LAYERWISE)


def attached(case, name, seed=0, dtype=torch.float64):
    model = case.module(seed=seed, dtype=dtype)
    lawful.attach(model, parse_rule(name + OPTIONS.get(name, "")))
    model(case.batch(dtype=dtype))  # direct rules draw D
    return model


def loss(out):
    return nn.functional.cross_entropy(out, torch.arange(len(out)) % out.shape[1])


def gradients(model, x, run=None):
    model.zero_grad()
    loss((run or model)(x)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def close(got, want, tolerance=1e-11):
    assert set(got) == set(want)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=tolerance, atol=tolerance)


@every_case
@every_rule
def test_it_is_not_backpropagation_until_it_is_removed(case, name):
    model, x = attached(case, name), case.batch()
    taught = gradients(model, x)
    lawful.attachment_of(model).remove()
    plain = gradients(model, x)
    assert not torch.allclose(taught["0.weight"], plain["0.weight"])
    twin = copy.deepcopy(model)
    assert all(torch.equal(g, plain[n]) for n, g in gradients(twin, x).items())


@every_case
@every_rule
def test_compile_fullgraph(case, name):
    model, x = attached(case, name), case.batch()
    torch._dynamo.reset()
    close(gradients(model, x, torch.compile(model, fullgraph=True, backend="aot_eager")), gradients(model, x))


@every_case
@every_rule
def test_functional_grad_and_ensembles(case, name):
    """Each member of a vmap has its own weights and its own B."""
    models, x = [attached(case, name, seed) for seed in range(3)], case.batch()

    def of(p, b):
        return loss(functional_call(models[0], (p, b), (x,)))

    got = vmap(grad(of))(*stack_module_state(models))
    for i, model in enumerate(models):
        want = gradients(model, x)
        close({n: g[i] for n, g in got.items()}, want)
        if i == 0:
            close(grad(of)(dict(model.named_parameters()), dict(model.named_buffers())), want)


@every_case
@layerwise
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(case, name, reentrant):
    model, x = attached(case, name), case.batch().requires_grad_()
    close(gradients(model, x, lambda x: checkpoint(model, x, use_reentrant=reentrant)), gradients(model, x))


@every_case
@every_rule
def test_accumulation_adds_gradients_up(case, name):
    model, x = attached(case, name), case.batch(6)
    halves = [gradients(model, half) for half in x.split(3)]
    model.zero_grad()
    for half in x.split(3):
        loss(model(half)).backward()
    close({n: p.grad for n, p in model.named_parameters()}, {n: g + halves[1][n] for n, g in halves[0].items()})


@every_case
@every_rule
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_have_the_same_feedback_and_their_own(case, name, copied):
    model, x = attached(case, name), case.batch()
    want = gradients(model, x)
    twin = copied(model)
    close(gradients(twin, x), want, 0)
    before = [b.clone() for b in model.buffers()]
    for buffer in twin.buffers():
        if buffer.is_floating_point():
            buffer.mul_(2)
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
    close(gradients(model, x), want, 0)


@every_case
@every_rule
def test_plain_checkpoints_load_and_save_strictly_and_the_rest_is_the_attachments(case, name):
    model, x = attached(case, name), case.batch()
    plain = case.module(seed=5)
    model.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(model.state_dict(), strict=True)
    for p in model.parameters():  # a rule may start from the weights, and move
        p.data.add_(0.01)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "rule": lawful.attachment_of(model).state_dict()}, file)
    file.seek(0)
    saved = torch.load(file)
    other = attached(case, name, seed=9)
    other.load_state_dict(saved["model"], strict=True)
    lawful.attachment_of(other).load_state_dict(saved["rule"])
    close(gradients(other, x), gradients(model, x), 0)


@every_case
@every_rule
def test_autocast(case, name):
    """In bfloat16 up to rounding; a sign that rounding turns is an error of full size."""
    model = attached(case, name, dtype=torch.float32)
    x = case.batch(dtype=torch.float32)
    exact = gradients(model, x)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    loss(out.float()).backward()
    for key, p in model.named_parameters():
        assert p.grad.dtype == torch.float32
        if name != "sign-fa" or key.startswith(f"{len(model) - 1}."):
            assert float((p.grad - exact[key]).norm()) <= 0.06 * float(exact[key].norm())


@every_case
@layerwise
def test_export_of_the_forward_pass(case, name):
    model, x = attached(case, name), case.batch()
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


@every_case
@every_rule
def test_without_gradients_and_in_evaluation_the_forward_pass_is_bitwise_the_same(case, name):
    model, x = attached(case, name), case.batch()
    plain = case.module()
    plain.load_state_dict(model.state_dict())
    for train in (True, False):
        model.train(train)
        with torch.no_grad():
            assert torch.equal(model(x), plain(x))
        assert torch.equal(model(x), plain(x))


class Transposed(nn.Module):
    """Two axes in front, and Hugging Face's layout of the weight."""

    def __init__(self):
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.c = Conv1D(5, 4)

    def forward(self, x):
        return self.c(x)


class _Square(nn.Module):
    def __init__(self):
        super().__init__()
        self.b = nn.Bilinear(4, 4, 5)

    def forward(self, x):
        return self.b(x, x)


LAYERS = {
    "linear": (lambda: nn.Linear(4, 5), (2, 3, 4)),
    "linear without bias": (lambda: nn.Linear(4, 5, bias=False), (2, 3, 4)),
    "rows": (lambda: nn.Linear(4, 5), (6, 4)),
    "large": (lambda: nn.Linear(300, 300), (2, 3, 300)),
    "convolution": (lambda: nn.Conv2d(3, 5, 3), (2, 3, 4, 4)),
    "one image": (lambda: nn.Conv2d(3, 5, 3), (3, 4, 4)),
    "transposed convolution": (lambda: nn.ConvTranspose1d(3, 5, 3), (2, 3, 4)),
    "bilinear": (_Square, (2, 3, 4)),
}


@pytest.mark.parametrize("rule", [lawful.FeedbackAlignment(), lawful.KolenPollack(), lawful.SignFeedbackAlignment()])
@pytest.mark.parametrize("layer", LAYERS)
def test_what_a_layer_gives_may_be_written_into(layer, rule):
    """``h += x``, ``nn.ReLU(inplace=True)``, ``h[mask] = 0`` behind a layer, as without a rule."""
    make, shape = LAYERS[layer]
    found = []
    for in_place in (True, False):
        torch.manual_seed(0)
        model = make().double()
        lawful.attach(model, rule)
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        h = model(x)
        if in_place:
            h += 1
            h[0] = 0
            h.relu_()
        else:
            keep = torch.ones_like(h)
            keep[0] = 0
            h = ((h + 1) * keep).relu()
        h.square().sum().backward()
        found.append([x.grad, *(p.grad for p in model.parameters())])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_what_hugging_faces_conv1d_gives_may_be_written_into():
    pytest.importorskip("transformers", reason="needs the extra with transformers")
    model = Transposed()
    lawful.attach(model, lawful.FeedbackAlignment())
    h = model(torch.randn(2, 3, 4, requires_grad=True))
    h += 1
    h.sum().backward()
