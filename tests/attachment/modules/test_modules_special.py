"""Raw parameters, subclasses, reparametrised and quantised layers: covered, or refused by name with what to do."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_same, check_against_oracle, gradients
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import lawful
from lawful.errors import CoverageError, SettingError

F64 = {"dtype": torch.float64}


def data(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Mixed(nn.Module):
    """Raw parameters used in every way that is allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(4, 5))
        self.heads = nn.Parameter(torch.randn(2, 3, 5))
        self.kernel = nn.Parameter(torch.randn(3, 6, 1))
        self.offset = nn.Parameter(torch.randn(5))
        self.gain = nn.Parameter(torch.randn(5))

    def forward(self, x):
        h = torch.tanh(x @ self.mix + self.offset) * self.gain
        h = torch.einsum("ni,koi->nko", h, self.heads)
        h = torch.relu(F.linear(h.flatten(1), self.kernel.squeeze(-1), self.offset[:3]))
        first, second = self.mix.T[:, :3].t().chunk(2, dim=1)[0], self.kernel[:, :, 0].mT
        return torch.addmm(h.new_ones(6), h, second.t()) + (h @ first).sum(1, keepdim=True)


lawful.register(Mixed, weights=["mix", "heads", "kernel"], added=["offset"], elementwise=["gain"])


def test_raw_parameters_by_registration():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), Mixed(), nn.Linear(6, 2)).double()
    attachment = check_against_oracle(model, data(5, 3))
    assert {"1.mix", "1.heads", "1.kernel"} < set(attachment.feedback)
    assert "elementwise" in attachment.coverage["1.gain"] and "added" in attachment.coverage["1.offset"]


class Misused(nn.Module):
    def __init__(self, use) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.eye(3, **F64))
        self.use = use

    def forward(self, x):
        return self.use(x, self.mix)


lawful.register(Misused, weights=["mix"])


@pytest.mark.parametrize(
    "use",
    [
        lambda x, W: x * W[0],
        lambda x, W: x @ W.softmax(0),
        lambda x, W: x @ (W @ W),
        lambda x, W: x + W.sum(),
        lambda x, W: torch.stack([x @ W, x]) @ W.exp(),
        lambda x, W: x @ W.data,
        lambda x, W: x @ W.detach(),
    ],
    ids=["scale", "softmax", "square", "sum", "exp", "data", "detach"],
)
def test_other_uses_of_a_registered_weight_raise_by_name(use):
    model = nn.Sequential(Misused(use))
    lawful.attach(model, lawful.FeedbackAlignment())
    with pytest.raises(CoverageError, match=r"Misused\.mix.*elementwise"):
        model(data(2, 3))
    assert isinstance(model[0].mix, nn.Parameter), "the weight itself is back after an error"


@pytest.mark.parametrize("bad", [dict(kind=3, weights=["w"]), dict(kind=nn.Module)], ids=["no type", "nothing said"])
def test_register_refuses(bad):
    with pytest.raises(SettingError, match="register"):
        lawful.register(**bad)


class Plain(nn.Linear):
    """Keeps the forward pass."""


class Doubled(nn.Linear):
    """Its own forward pass, through super()."""

    def forward(self, input):
        return 2 * super().forward(torch.tanh(input))


class Direct(nn.Conv1d):
    """Its own forward pass, straight to the functional."""

    def forward(self, input):
        return F.conv1d(input, self.weight.flip(-1) if self.groups > 1 else self.weight, self.bias).tanh()


class LoRA(nn.Linear):
    """A low-rank correction, by raw parameters."""

    def __init__(self, *args, rank=2, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.A = nn.Parameter(torch.randn(rank, self.in_features))
        self.C = nn.Parameter(torch.randn(self.out_features, rank))

    def forward(self, input):
        return super().forward(input) + input @ self.A.T @ self.C.T


@pytest.mark.parametrize("kind", [Plain, Doubled], ids=lambda kind: kind.__name__)
def test_subclasses_of_linear(kind):
    torch.manual_seed(0)
    check_against_oracle(nn.Sequential(kind(3, 4), nn.ReLU(), kind(4, 2)).double(), data(5, 3))


def test_subclasses_of_convolutions():
    torch.manual_seed(0)
    check_against_oracle(nn.Sequential(Direct(2, 3, 2), Direct(3, 2, 2)).double(), data(2, 2, 6))
    model = nn.Sequential(Direct(2, 2, 2, groups=2)).double()
    lawful.attach(model, lawful.FeedbackAlignment())
    with pytest.raises(CoverageError, match=r"Direct\.weight meets flip"):
        model(data(1, 2, 4))


def test_lora_is_refused_until_registered():
    torch.manual_seed(0)
    model = nn.Sequential(LoRA(3, 4), nn.ReLU(), LoRA(4, 2)).double()
    with pytest.raises(CoverageError, match=r"0\.A: .*LoRA.*lawful\.register"):
        lawful.attach(model, lawful.FeedbackAlignment())
    lawful.register(LoRA, weights=["weight", "A", "C"], added=["bias"])
    attachment = check_against_oracle(model, data(5, 3))
    assert {"0.weight", "0.A", "0.C"} <= set(attachment.feedback)


@pytest.mark.parametrize("make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_of_every_leaf(make):
    model = nn.Sequential(Mixed(), Plain(6, 4), Doubled(4, 4), nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 3, 1)).double()
    lawful.attach(model, lawful.FeedbackAlignment())
    twin, x = make(model), data(5, 4)
    assert_same(gradients(twin, x), gradients(model, x), 0.0)
    lawful.attachment_of(twin).remove()
    assert [type(m) for m in twin][:3] == [Mixed, Plain, Doubled]


def explicit(model, attachment, x):
    """∂loss/∂x of Linear, ReLU, Linear by the formula, and its output error."""
    first, second = model[0], model[2]
    with torch.no_grad():
        h = F.linear(x, first.weight, first.bias)
        out = F.linear(h.relu(), second.weight, second.bias)
        delta = out**2 + 1
        hidden = delta @ attachment.feedback_of("2.weight") * (h > 0)
        return hidden @ attachment.feedback_of("0.weight"), hidden.T @ x


def old_weight_norm(layer):
    return torch.nn.utils.weight_norm(layer)


REPARAMETRISED = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm (hook)": old_weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", 0.4),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("wrap", REPARAMETRISED.values(), ids=REPARAMETRISED.keys())
def test_reparametrised_layers(wrap):
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Linear(3, 4, **F64)), nn.ReLU(), wrap(nn.Linear(4, 2, **F64)))
    x = data(5, 3).requires_grad_()
    expected = model(x)
    kinds = [type(m) for m in model]
    attachment = lawful.attach(model, lawful.FeedbackAlignment(seed=2))
    assert torch.equal(model(x), expected)
    assert set(attachment.feedback) == {"0.weight", "2.weight"}
    own = {n for n, _ in model.named_parameters() if "bias" not in n}
    assert all("reparametrisation" in attachment.coverage[n] for n in own)
    out = model(x)
    model.zero_grad()
    (out**3 / 3 + out).sum().backward()
    sent, weight_gradient = explicit(model, attachment, x.detach())
    torch.testing.assert_close(x.grad, sent, rtol=1e-12, atol=1e-12)
    parts = [p for n, p in model[0].named_parameters() if n != "bias"]
    W = model[0].weight
    if W.grad_fn is not None and not parametrize.is_parametrized(model[0]):
        for hook in model[0]._forward_pre_hooks.values():
            hook(model[0], (x,))
    for part, g in zip(parts, torch.autograd.grad(model[0].weight, parts, weight_gradient), strict=True):
        torch.testing.assert_close(part.grad, g, rtol=1e-10, atol=1e-12)
    attachment.remove()
    assert [type(m) for m in model] == kinds and torch.equal(model(x), expected)


@pytest.mark.parametrize("learning", [lawful.WeightMirror(), lawful.KolenPollack(decay=0.1)], ids=["WM", "KP"])
def test_rules_that_learn_refuse_computed_weights(learning):
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)))
    with pytest.raises(CoverageError, match=r"0\.weight: it is computed from other parameters"):
        lawful.attach(model, learning)


def test_spectral_norm_advances_once_per_forward_pass():
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 4, **F64)), nn.Linear(4, 2, **F64))
    plain, x = copy.deepcopy(model), data(5, 3)
    attachment = lawful.attach(model, lawful.FeedbackAlignment())
    for _ in range(3):
        attachment.feedback_of("0.weight")
        assert torch.equal(model(x), plain(x))
    assert model[0].parametrizations.weight[0].training


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor.*:UserWarning")
def test_quantised_layers_are_refused_by_name():
    quantised = torch.ao.nn.quantized.Linear(3, 4)
    model = nn.Sequential(nn.Linear(3, 3), quantised)
    with pytest.raises(CoverageError, match="1: Linear is quantised"):
        lawful.attach(model, lawful.FeedbackAlignment())
