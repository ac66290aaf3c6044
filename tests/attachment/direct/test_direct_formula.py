"""Direct rules against the formula written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lawful
from cases import ACTIVATIONS, MLP, MLPS
from lawful.errors import SettingError, UnfollowedRuleError

DEEP = [case for case in MLPS if len(case.widths) > 2]


def direct_gradients(model, D, x, output_delta, activation):
    """δ_i = (e D_i) ⊙ σ'(h_i) for every hidden layer; ``D`` by tap, in order."""
    _, sigma, slope = ACTIVATIONS[activation]
    layers = [(name, module) for name, module in model.named_children() if isinstance(module, nn.Linear)]
    a, gradients, D = x, {}, list(D.values())
    for i, (name, layer) in enumerate(layers):
        h = a @ layer.weight.detach().numpy().T
        h = h if layer.bias is None else h + layer.bias.detach().numpy()
        last = i == len(layers) - 1
        delta = output_delta if last else (output_delta @ D[i]) * slope(h)
        gradients[f"{name}.weight"] = np.einsum("no,ni->oi", delta, a)
        if layer.bias is not None:
            gradients[f"{name}.bias"] = delta.sum(0)
        a = sigma(h)
    return gradients


def backward(model, x):
    model.zero_grad()
    out = model(x)
    out.retain_grad()
    (out**3 / 3 + out).sum().backward()
    return out.grad.numpy()


def check(model, attachment, x, activation):
    delta = backward(model, x)
    D = {tap: tensor.numpy() for tap, tensor in attachment.feedback.items()}
    expected = direct_gradients(model, D, x.numpy(), delta, activation)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.grad.numpy(), expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", DEEP, ids=str)
@pytest.mark.parametrize("rule", [lawful.DirectFeedbackAlignment(seed=3), lawful.SharedProjection(seed=3)], ids=repr)
def test_gradients_equal_the_explicit_formula(case, rule):
    model = case.module()
    with torch.no_grad():
        plain = model(case.batch())
    attachment = lawful.attach(model, rule)
    assert torch.equal(model(case.batch()), plain), "the forward pass must not change"
    check(model, attachment, case.batch(), case.activation)


@given(widths=st.lists(st.integers(1, 6), min_size=3, max_size=5), n=st.integers(1, 4), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_the_formula_holds_at_every_shape(widths, n, seed):
    case = MLP(tuple(widths), "leaky_relu", seed % 2 == 0)
    model = case.module(seed)
    attachment = lawful.attach(model, lawful.DirectFeedbackAlignment(seed=seed))
    check(model, attachment, case.batch(n, seed), case.activation)


def test_it_is_feedback_alignment_between_the_last_hidden_layer_and_the_output():
    case = MLP((4, 5, 6, 3))
    direct, layered, x = case.module(), case.module(), case.batch()
    attachment = lawful.attach(direct, lawful.DirectFeedbackAlignment())
    B = lawful.attach(layered, lawful.FeedbackAlignment()).feedback["4.weight"]
    direct(x)  # draws D
    attachment.feedback["3"].copy_(B)
    backward(direct, x), backward(layered, x)
    for name in ("2.weight", "2.bias", "4.weight", "4.bias"):
        assert torch.allclose(direct.get_parameter(name).grad, layered.get_parameter(name).grad, rtol=1e-12)
    assert not torch.allclose(direct[0].weight.grad, layered[0].weight.grad)


def test_drtp_teaches_with_minus_the_label():
    case = MLP((4, 5, 3), "tanh")
    model, x, y = case.module(), case.batch(), torch.tensor([0, 2, 1, 2, 0])
    attachment = lawful.attach(model, lawful.DirectRandomTargetProjection(seed=2))
    nn.functional.cross_entropy(model(x), y).backward()
    D, h = attachment.feedback["1"].numpy(), (x @ model[0].weight.T + model[0].bias).detach().numpy()
    delta = -np.eye(3)[y.numpy()] @ D * (1 - np.tanh(h) ** 2) / len(y)
    np.testing.assert_allclose(model[0].weight.grad.numpy(), delta.T @ x.numpy(), rtol=1e-12)


def test_monotone_dfa_keeps_the_weights_behind_the_first_block_positive():
    case = MLP((4, 5, 6, 1))
    model = case.module()
    first = model[0].weight.detach().clone()
    attachment = lawful.attach(model, lawful.MonotoneDFA())
    assert torch.equal(model[0].weight, first), "the weights that read the input are free"
    assert model[2].weight.min() >= 1e-6 and model[4].weight.min() >= 1e-6
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    backward(model, case.batch())
    with pytest.raises(UnfollowedRuleError, match="MonotoneDFA"):
        optimizer.step()
    attachment.follow(optimizer)
    optimizer.step()
    assert attachment.steps == 1
    assert model[2].weight.min() >= 1e-6 and model[4].weight.min() >= 1e-6
    assert model[0].weight.min() < 0


def test_convolutions_receive_the_signal_on_their_flattened_features():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)
    ).double()
    x = torch.randn(5, 2, 4, 4, dtype=torch.float64)
    attachment = lawful.attach(model, lawful.DirectFeedbackAlignment())
    delta = torch.from_numpy(backward(model, x))
    D = attachment.feedback["2"]
    assert D.shape == (4, 3 * 4 * 4)
    # the surrogate whose gradient the formula is: the block alone, paired with its signal
    wanted = torch.autograd.grad((model[:2](x).tanh() * (delta @ D).view(5, 3, 4, 4)).sum(), model[0].weight)[0]
    assert torch.allclose(model[0].weight.grad, wanted, rtol=1e-12)


class Language(nn.Module):
    """A character model with residual blocks in a ModuleList."""

    def __init__(self, vocabulary=7, width=8):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_language_models_are_taught_position_by_position():
    torch.manual_seed(0)
    model = Language().double()
    tokens = torch.randint(7, (3, 5))
    attachment = lawful.attach(model, lawful.DirectFeedbackAlignment())
    out = model(tokens)
    out.retain_grad()
    nn.functional.cross_entropy(out.transpose(1, 2), torch.randint(7, (3, 5))).backward()
    D = attachment.feedback["blocks.0"]
    assert D.shape == (7, 8)
    block = model.blocks[0]
    attachment.remove()
    wanted = torch.autograd.grad((block(model.embedding(tokens)) * (out.grad @ D)).sum(), [*block.parameters()])
    for parameter, gradient in zip(block.parameters(), wanted, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-12, atol=1e-15)
    assert "the signal at blocks.0" in attachment.coverage["embedding.weight"]
    assert "the output error" in attachment.coverage["head.weight"]


def test_the_error_is_the_one_of_the_backward_pass():
    """Loss scaling, gradient accumulation and ignored labels are in it."""
    case = MLP((4, 5, 6, 3))
    model, x, y = case.module(), case.batch(6), torch.tensor([0, 2, 1, -100, -100, 1])
    lawful.attach(model, lawful.DirectFeedbackAlignment())

    def gradients(*losses):
        model.zero_grad()
        for loss in losses:
            loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    whole = gradients(nn.functional.cross_entropy(model(x), y))
    kept = y >= 0
    for other in (
        gradients(nn.functional.cross_entropy(model(x[kept]), y[kept])),
        [g / 1024 for g in gradients(1024 * nn.functional.cross_entropy(model(x), y))],
        gradients(*(nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]) / 4 for i in (0, 1, 2, 5))),
    ):
        for one, two in zip(whole, other, strict=True):
            assert torch.allclose(one, two, rtol=1e-12, atol=1e-15)


def test_one_projection_serves_blocks_of_equal_width():
    model = MLP((4, 5, 5, 3, 2)).module()
    attachment = lawful.attach(model, lawful.SharedProjection())
    model(torch.randn(2, 4, dtype=torch.float64))
    D = attachment.feedback
    assert D["1"] is D["3"], "one copy"
    assert D["5"].shape == (2, 3)


def test_errors_list_the_candidates():
    with pytest.raises(SettingError, match=r"no default taps.*candidates: a, b"):
        lawful.attach(nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 1)}), lawful.DirectFeedbackAlignment())
    linear = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    with pytest.raises(SettingError, match="no activation module stands between 0 and 1"):
        lawful.attach(linear, lawful.DirectFeedbackAlignment())
    with pytest.raises(SettingError, match="tap 'x' matches no module before the output '3'; candidates: 0, 1, 2, 3"):
        lawful.attach(linear, lawful.DirectFeedbackAlignment(taps=["x"]))
    with pytest.raises(SettingError, match="output='logits' is no module"):
        lawful.attach(linear, lawful.DirectFeedbackAlignment(taps=["0"], output="logits"))
    bare = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), "head": nn.Linear(2, 1)})
    with pytest.raises(SettingError, match="layers.0 is a bare affine layer"):
        lawful.attach(bare, lawful.DirectFeedbackAlignment())
    for model in (linear, bare):
        assert not model._forward_pre_hooks, "a refused attachment leaves nothing behind"


def test_activations_in_a_row_are_one():
    """Linear, ReLU, Identity: the tap stands behind σ, so that σ' is in the gradient, and there is only one."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Identity(), nn.ReLU(), nn.Identity(), nn.Linear(5, 2)).double()
    attachment = lawful.attach(model, lawful.DirectFeedbackAlignment())
    assert attachment.taps == ("2",)
    check(model, attachment, torch.randn(3, 4, dtype=torch.float64), "relu")
    two = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.ReLU(), nn.Linear(5, 2))
    assert lawful.attach(two, lawful.DirectFeedbackAlignment()).taps == ("2",)


def test_feedback_is_a_function_of_seed_and_tap():
    def drawn(seed, widths=(4, 5, 5, 3)):
        model = MLP(widths).module()
        attachment = lawful.attach(model, lawful.DirectFeedbackAlignment(seed=seed))
        model(torch.randn(2, widths[0], dtype=torch.float64))
        return attachment.feedback

    one = drawn(1)
    assert not torch.equal(one["1"], one["3"]) and not torch.equal(one["1"], drawn(2)["1"])
    torch.rand(3)
    assert torch.equal(one["1"], drawn(1)["1"]), "whatever else was drawn"
    assert torch.equal(one["1"], drawn(1, (7, 5, 2, 3))["1"]), "whatever the rest of the model is"
    assert drawn(1, (2, 400, 300))["1"].std() == pytest.approx(400**-0.5, rel=0.02)


def test_maps_of_logits_are_flattened_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 1)).double()
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    attachment = lawful.attach(model, lawful.DirectFeedbackAlignment())
    delta = torch.from_numpy(backward(model, x))
    D = attachment.feedback["1"]
    assert D.shape == (2 * 25, 3 * 25)
    wanted = torch.autograd.grad((model[0](x).relu().flatten(1) * (delta.flatten(1) @ D)).sum(), model[0].weight)[0]
    assert torch.allclose(model[0].weight.grad, wanted, rtol=1e-12)


def test_the_block_may_be_changed_in_place_behind_its_tap():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)).double()
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(3, 4, dtype=torch.float64)
    for one in (model, plain):
        lawful.attach(one, lawful.DirectFeedbackAlignment(taps=["0"]))
        backward(one, x)
    assert torch.equal(model[0].weight.grad, plain[0].weight.grad)
    assert torch.equal(model[2].weight.grad, plain[2].weight.grad)
