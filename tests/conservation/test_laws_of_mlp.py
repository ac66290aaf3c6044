"""Laws of MLPs against formulas written out by hand, and against finite differences."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import lawful
from lawful.conservation.base import Law
from lawful.conservation.derive import laws_of
from lawful.conservation.elimination import relations
from lawful.conservation.potential import Potential, bregman

RULES = {
    "bp": lawful.Backprop,
    "fa": lambda: lawful.FeedbackAlignment(seed=3),
}


def mlp(activation=nn.ReLU, widths=(3, 4, 5, 2), bias=True, seed=0):
    torch.manual_seed(seed)
    layers = []
    for i in range(len(widths) - 1):
        layers += [nn.Linear(widths[i], widths[i + 1], bias=bias), activation()]
    return nn.Sequential(*layers[:-1]).double()


def theta_of(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def direction(theta, seed=1):
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(t.shape, generator=g, dtype=t.dtype) for n, t in theta.items()}


def test_neuron_law_under_backprop_by_hand():
    model = mlp()
    W1, b1, W2 = (p.detach() for p in (model[0].weight, model[0].bias, model[2].weight))
    expected = [
        0.5 * sum(float(w) ** 2 for w in W1[j]) + 0.5 * float(b1[j]) ** 2 - 0.5 * sum(float(w) ** 2 for w in W2[:, j])
        for j in range(4)
    ]
    laws = laws_of(model)
    assert [law.name for law in laws] == ["0", "2"]
    np.testing.assert_allclose(laws[0].value(theta_of(model)).numpy(), expected, rtol=1e-13)
    assert laws.names[3] == "0 · neuron 3"


def test_neuron_law_under_feedback_alignment_by_hand():
    model = mlp()
    attachment = lawful.attach(model, lawful.FeedbackAlignment(seed=1))
    B, W1, b1, W2 = (
        t.detach().numpy() for t in (attachment.feedback["2.weight"], model[0].weight, model[0].bias, model[2].weight)
    )
    expected = 0.5 * (W1**2).sum(1) + 0.5 * b1**2 - (B * W2).sum(0)
    np.testing.assert_allclose(laws_of(model)[0].value(theta_of(model)).numpy(), expected, rtol=1e-13)


def test_degree_of_the_activation_enters():
    class SquaredReLU(nn.Module):
        def forward(self, x):
            return torch.relu(x) ** 2

    model = mlp(SquaredReLU)
    W1, b1, W2 = (t.detach().numpy() for t in (model[0].weight, model[0].bias, model[2].weight))
    law = laws_of(model)[0]
    expected = 0.5 * (W1**2).sum(1) + 0.5 * b1**2 - 2 * 0.5 * (W2**2).sum(0)
    np.testing.assert_allclose(law.value(theta_of(model)).numpy(), expected, rtol=1e-13)
    assert "2·" in law.formula


def test_matrix_law_of_a_linear_layer_by_hand():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    attachment = lawful.attach(model, lawful.FeedbackAlignment(seed=1))
    B, W1, b1, W2 = (
        t.detach().numpy() for t in (attachment.feedback["1.weight"], model[0].weight, model[0].bias, model[1].weight)
    )
    expected = W1 @ W1.T + np.outer(b1, b1) - (B.T @ W2 + W2.T @ B)
    (law,) = laws_of(model).of_kind("matrix")
    np.testing.assert_allclose(law.value(theta_of(model)).numpy(), expected[np.triu_indices(4)], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", RULES)
def test_closed_forms_agree_with_the_base_class(rule):
    model = mlp(nn.Identity)
    lawful.attach(model, RULES[rule]())
    theta = theta_of(model)
    v = direction(theta)
    laws = laws_of(model)
    for law in [*laws, *laws.layers]:
        torch.testing.assert_close(law.rate(theta, v), Law.rate(law, theta, v), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(law.drift(theta, v), Law.drift(law, theta, v), rtol=1e-12, atol=1e-12)


def test_a_tiny_step_loses_nothing_to_cancellation():
    model = mlp()
    theta = theta_of(model)
    delta = {n: 1e-9 * v for n, v in direction(theta).items()}
    law = laws_of(model)[0]
    expected = (
        0.5 * (delta["0.weight"] ** 2).sum(1) + 0.5 * delta["0.bias"] ** 2 - 0.5 * (delta["2.weight"] ** 2).sum(0)
    )
    torch.testing.assert_close(law.drift(theta, delta), expected, rtol=1e-12, atol=0)


def test_an_activation_that_is_not_homogeneous_has_no_law_and_says_why():
    laws = laws_of(mlp(nn.Tanh))
    assert len(laws) == 0
    assert laws.reasons["0.weight"] == "tanh is not homogeneous"
    assert "tanh is not homogeneous" in repr(laws)
    assert len(laws_of(mlp(nn.Tanh), force=True)) == 2


def test_the_output_layer_has_no_law():
    assert laws_of(mlp()).reasons == {"4.weight": "it is an output"}


def test_a_layer_without_bias():
    law = laws_of(mlp(bias=False))[0]
    assert law.formula == "½‖0.weight[j]‖² − ½‖2.weight[:, j]‖²"


def test_inputs_that_cannot_be_guessed_are_asked_for():
    with pytest.raises(lawful.LawfulError, match="expected args"):
        laws_of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 3)))
    with pytest.raises(lawful.LawfulError, match="'free' or 'softmax'"):
        laws_of(mlp(), output="linear")


def test_deriving_leaves_the_model_and_the_random_state_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1))
    before = {n: b.clone() for n, b in model.named_buffers()}
    state = torch.random.get_rng_state()
    laws_of(model, torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(state, torch.random.get_rng_state())
    for n, b in model.named_buffers():
        assert torch.equal(b, before[n])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    "rule",
    [
        lawful.Backprop(),
        lawful.FeedbackAlignment(seed=1),
        lawful.KolenPollack(seed=1),
        lawful.UniformSignSymmetry(),
        lawful.FixedMagnitudeSignSymmetry(seed=1),
    ],
    ids=lambda rule: rule.name,
)
def test_bregman_divergence_against_its_definition(rule):
    model = mlp()
    attachment = lawful.attach(model, rule)
    psi = Potential(rule, lambda: attachment.state("2.weight"))
    W = model[2].weight.detach()
    delta = torch.randn(W.shape, generator=torch.Generator().manual_seed(5), dtype=W.dtype)
    expected = psi.value(W + delta) - psi.value(W) - psi.feedback(W) * delta
    torch.testing.assert_close(psi.bregman(W, delta), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(bregman(psi, W, delta), expected, rtol=1e-12, atol=1e-14)


def test_a_sign_rule_drifts_only_where_a_weight_crosses_zero():
    model = mlp()
    attachment = lawful.attach(model, lawful.FixedMagnitudeSignSymmetry(seed=1))
    psi = Potential(attachment.rules["2.weight"], lambda: attachment.state("2.weight"))
    W = model[2].weight.detach()
    delta = torch.zeros_like(W)
    delta[0, 0] = -1.5 * W[0, 0]  # crosses
    delta[1, 1] = 0.5 * W[1, 1]  # does not
    magnitude = psi.feedback(W).abs()
    expected = torch.zeros_like(W)
    expected[0, 0] = 2 * magnitude[0, 0] * (W + delta)[0, 0].abs()
    torch.testing.assert_close(psi.bregman(W, delta), expected, rtol=1e-12, atol=1e-16)


def test_exact_elimination():
    one = Fraction(1)
    rows = [{"P": one, "x": -one}, {"x": one, "y": -2 * one}, {"y": one, "C": -one}, {"Q": one, "z": one}]
    assert relations(rows, known=str.isupper) == [{"P": one, "C": -2 * one}]
    assert relations([{"P": one, "x": -one}], known=str.isupper) == []


@pytest.mark.parametrize("start", [0.0, 1.0])
@pytest.mark.parametrize(
    ("rule", "slope"),
    [
        (lawful.Backprop(), 1),
        (lawful.KolenPollack(), 1),
        (lawful.FeedbackAlignment(), 0),
        (lawful.UniformSignSymmetry(), None),
        (lawful.FixedMagnitudeSignSymmetry(), None),
    ],
    ids=repr,
)
def test_how_feedback_moves_with_the_weight_is_seen_at_zero_too(rule, slope, start):
    weight = start * torch.randn(3, 4, dtype=torch.float64)
    state = rule.init(weight, torch.Generator().manual_seed(0))
    assert Potential(rule, lambda: state).slope(weight) == slope


def test_laws_of_a_layer_that_starts_at_zero_are_its_laws():
    """Residual branches, output layers and attention biases start there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 2)).double()
    with torch.no_grad():
        for p in (model[0].bias, model[1].weight, model[2].weight):
            p.zero_()
    laws = laws_of(model)
    assert [law.kind for law in laws].count("matrix") == 2
    theta = {n: p.detach() for n, p in model.named_parameters()}
    delta = {n: torch.randn_like(p) for n, p in theta.items()}
    moved = {n: theta[n] + delta[n] for n in theta}
    for law in laws:
        change = law.rate(theta, delta) + law.drift(theta, delta)
        torch.testing.assert_close(law.value(moved) - law.value(theta), change, rtol=1e-12, atol=1e-12)
