"""attach on nn.Linear: gradients against the formula, and the identities that must hold bitwise."""

from __future__ import annotations

import copy
import warnings
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import allocated
import lawful
from cases import MLP, MLPS, feedback_gradients
from lawful.errors import SettingError
from lawful.rules.registry import RULES, parse_rule


def backward(model, x):
    """Run one backward pass with a loss whose output error is not constant; return that error."""
    model.zero_grad()
    out = model(x)
    out.retain_grad()
    (out**3 / 3 + out).sum().backward()
    return out.grad


@pytest.mark.parametrize("case", MLPS, ids=str)
@pytest.mark.parametrize("init", ["normal", "uniform", "orthogonal", "aligned"])
def test_gradients_equal_the_explicit_formula(case, init):
    model, x = case.module(), case.batch().requires_grad_()
    attachment = lawful.attach(model, lawful.FeedbackAlignment(seed=3, init=init, scale=0.7))
    delta = backward(model, x)
    B = {name: tensor.numpy() for name, tensor in attachment.feedback.items()}
    expected, error = feedback_gradients(model, B, x.detach().numpy(), delta.numpy(), case.activation)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.grad.numpy(), expected[name], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(x.grad.numpy(), error, rtol=1e-12, atol=1e-12)


@given(
    widths=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    n=st.integers(1, 4),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_the_formula_holds_at_every_shape(widths, n, bias, seed):
    case = MLP(tuple(widths), "leaky_relu", bias)
    model, x = case.module(seed), case.batch(n, seed)
    attachment = lawful.attach(model, lawful.FeedbackAlignment(seed=seed))
    delta = backward(model, x)
    B = {name: tensor.numpy() for name, tensor in attachment.feedback.items()}
    expected, _ = feedback_gradients(model, B, x.numpy(), delta.numpy(), case.activation)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.grad.numpy(), expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", MLPS, ids=str)
@pytest.mark.parametrize("leading", [(), (5,), (2, 3)], ids=["1-D", "2-D", "3-D"])
def test_aligned_feedback_is_autograd_bitwise(case, leading):
    plain, model = case.module(), case.module()
    x = torch.randn(*leading, case.widths[0], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    xs = [x.clone().requires_grad_() for _ in range(2)]
    lawful.attach(model, lawful.FeedbackAlignment(init="aligned"))
    assert torch.equal(plain(x), model(x)), "the forward pass must not change"
    backward(plain, xs[0]), backward(model, xs[1])
    assert torch.equal(xs[0].grad, xs[1].grad)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_remove_restores_backprop_bitwise_and_leaves_nothing():
    case = MLP((4, 5, 6, 3))
    plain, model, x = case.module(), case.module(), case.batch()
    attachment = lawful.attach(model, lawful.FeedbackAlignment())
    backward(model, x)
    fed_back = model[0].weight.grad.clone()
    attachment.remove()
    backward(plain, x), backward(model, x)
    assert not torch.equal(fed_back, model[0].weight.grad)
    assert torch.equal(plain[0].weight.grad, model[0].weight.grad)
    for module, untouched in zip(model.modules(), plain.modules(), strict=True):
        assert type(module) is type(untouched) and vars(module).keys() == vars(untouched).keys()
    with pytest.raises(lawful.LawfulError, match="carries no rule"):
        lawful.attachment_of(model)
    lawful.attach(model, lawful.FeedbackAlignment())


def test_shared_layers_accumulate_and_keep_one_B():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3, bias=False, dtype=torch.float64)

        def forward(self, x):
            return self.layer(self.layer(x))

    model = Shared()
    attachment = lawful.attach(model, lawful.FeedbackAlignment())
    x = torch.randn(4, 3, dtype=torch.float64)
    model(x).sum().backward()
    W, B = model.layer.weight.detach(), attachment.feedback["layer.weight"]
    delta = torch.ones(4, 3, dtype=torch.float64)
    torch.testing.assert_close(model.layer.weight.grad, delta.T @ (x @ W.T) + (delta @ B).T @ x)
    assert list(attachment.feedback) == ["layer.weight"]


def test_float64_before_or_after_attaching():
    before = MLP((3, 4, 1)).module()
    after = MLP((3, 4, 1)).module(dtype=torch.float32)
    a = lawful.attach(before, lawful.FeedbackAlignment(seed=5))
    b = lawful.attach(after, lawful.FeedbackAlignment(seed=5))
    after.double()
    assert {t.dtype for t in (*a.feedback.values(), *b.feedback.values())} == {torch.float64}
    for name in a.feedback:
        torch.testing.assert_close(a.feedback[name], b.feedback[name], rtol=1e-6, atol=1e-6)
    after(MLP((3, 4, 1)).batch()).sum().backward()


def test_B_depends_on_seed_and_name_only():
    draws = [
        lawful.attach(MLP((3, 4, 1)).module(seed=s), lawful.FeedbackAlignment(seed=f)).feedback
        for s, f in [(0, 0), (1, 0), (0, 1)]
    ]
    assert torch.equal(draws[0]["0.weight"], draws[1]["0.weight"])
    assert not torch.equal(draws[0]["0.weight"], draws[2]["0.weight"])
    wide = lawful.attach(MLP((64, 1000)).module(), lawful.FeedbackAlignment(seed=0)).feedback["0.weight"]
    assert wide.std().item() == pytest.approx(1 / 8, rel=0.02)
    assert abs(wide.mean().item()) < 0.005


@pytest.mark.parametrize("init", ["normal", "uniform", "orthogonal"])
def test_scale_is_the_standard_deviation(init):
    attachment = lawful.attach(nn.Linear(60, 200), lawful.FeedbackAlignment(init=init, scale=0.3))
    assert attachment.feedback["weight"].square().mean().sqrt().item() == pytest.approx(0.3, rel=0.03)


def test_given_B_by_tensor_mapping_and_pattern():
    case = MLP((3, 4, 2))
    B = {"0.weight": torch.randn(4, 3), "2.weight": torch.randn(2, 4)}
    by_name = lawful.attach(case.module(), lawful.FeedbackAlignment(B=B)).feedback
    by_pattern = lawful.attach(case.module(), {n: lawful.FeedbackAlignment(B=b) for n, b in B.items()}).feedback
    for name in B:
        assert torch.equal(by_name[name], B[name].double()) and torch.equal(by_pattern[name], B[name].double())
    with pytest.raises(lawful.LawfulError, match="2.weight"):
        lawful.attach(case.module(), lawful.FeedbackAlignment(B={"0.weight": B["0.weight"]}))
    with pytest.raises(lawful.LawfulError, match=r"\(4, 3\).*\(3, 4\)"):
        lawful.attach(case.module(), {"0": lawful.FeedbackAlignment(B=torch.zeros(3, 4)), "*": lawful.Backprop()})


def test_first_matching_pattern_wins_and_unmatched_weights_raise():
    model = MLP((3, 4, 5, 2)).module()
    rules = {"2": lawful.Backprop(), "*": lawful.FeedbackAlignment()}
    attachment = lawful.attach(model, rules)
    assert sorted(attachment.feedback) == ["0.weight", "4.weight"]
    assert "Backprop" in attachment.coverage["2.weight"]
    attachment.remove()
    with pytest.raises(lawful.LawfulError, match=r"2\.weight: no pattern"):
        lawful.attach(model, {"[04]": lawful.FeedbackAlignment()})
    with pytest.raises(lawful.LawfulError, match="'decoder.*' matches no weight"):
        lawful.attach(model, {"decoder.*": lawful.FeedbackAlignment(), "*": lawful.Backprop()})
    lawful.attach(model, {"[04]": lawful.FeedbackAlignment()}, strict=False)


@pytest.mark.parametrize("bad", [lawful.FeedbackAlignment, "fa", None, 3])
def test_what_is_no_rule_is_refused(bad):
    with pytest.raises(lawful.LawfulError, match="Rule"):
        lawful.attach(nn.Linear(2, 2), bad)


@pytest.mark.parametrize("options", [{"init": "gauss"}, {"scale": -1.0}, {"scale": float("nan")}])
def test_bad_options_are_refused(options):
    with pytest.raises(lawful.LawfulError, match="FeedbackAlignment"):
        lawful.FeedbackAlignment(**options)


def test_attaching_twice_raises_also_through_a_parent():
    model = MLP((3, 4, 1)).module()
    lawful.attach(model, lawful.FeedbackAlignment())
    for target in (model, nn.Sequential(model)):
        with pytest.raises(lawful.LawfulError, match=r"remove\(\)"):
            lawful.attach(target, lawful.FeedbackAlignment())


def test_unknown_modules_raise_with_their_name_and_change_nothing():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Parameter(torch.eye(3))

        def forward(self, x):
            return x @ self.mix

    model = nn.Sequential(nn.Linear(3, 3), Odd())
    with pytest.raises(lawful.LawfulError, match=r"1\.mix.*Odd"):
        lawful.attach(model, lawful.FeedbackAlignment())
    assert type(model[0]) is nn.Linear
    attachment = lawful.attach(model, lawful.FeedbackAlignment(), strict=False)
    assert attachment.coverage["1.mix"].startswith("NOT COVERED")
    assert set(attachment.coverage) == {name for name, _ in model.named_parameters()}


def test_embeddings_and_norms_are_listed_not_raised():
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    coverage = lawful.attach(model, lawful.FeedbackAlignment()).coverage
    assert "no input error" in coverage["0.weight"] and "normalisation" in coverage["1.weight"]
    assert "fed back" in coverage["2.weight"]


def test_lazy_modules_are_refused_until_they_have_a_shape():
    with warnings.catch_warnings():  # older versions of torch say that lazy modules are new
        warnings.simplefilter("ignore", UserWarning)
        model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(lawful.LawfulError, match="forward"):
        lawful.attach(model, lawful.FeedbackAlignment())


def test_copies_carry_their_own_attachment():
    model = MLP((3, 4, 1)).module()
    attachment = lawful.attach(model, lawful.FeedbackAlignment())
    twin = copy.deepcopy(model)
    theirs = lawful.attachment_of(twin)
    assert theirs.model is twin and theirs is not attachment
    theirs.feedback["2.weight"].zero_()
    x = MLP((3, 4, 1)).batch()
    backward(twin, x), backward(model, x)
    assert twin[0].weight.grad.abs().max() == 0 and model[0].weight.grad.abs().max() > 0
    theirs.remove()
    assert lawful.attachment_of(model) is attachment


class Counted(lawful.KolenPollack):
    """B = W + C, counting how often it is made."""

    made = 0

    def feedback(self, weight, state):
        Counted.made += 1
        return super().feedback(weight, state)


def test_B_is_made_in_the_backward_pass_and_only_where_an_error_is_sent():
    """So a B that depends on W costs memory for one layer at a time."""
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
    lawful.attach(model, Counted())
    Counted.made = 0
    out = model(torch.ones(2, 4))
    assert Counted.made == 0
    out.sum().backward()
    assert Counted.made == 2


@pytest.mark.parametrize(
    "rule",
    [
        lawful.FeedbackAlignment(),
        lawful.UniformSignSymmetry(),
        lawful.FixedMagnitudeSignSymmetry(),
        lawful.KolenPollack(),
    ],
    ids=lambda rule: rule.name,
)
def test_a_step_needs_no_more_memory_than_backpropagation(rule):
    """Beside the rule's own state, which is no larger than B: a B that is made is gone before ∂W is allocated."""
    peaks = []
    for attached in (False, True):
        model, x = nn.Sequential(nn.Linear(5, 300), nn.Linear(300, 300), nn.Linear(300, 300)), torch.randn(3, 5)
        if attached:
            attachment = lawful.attach(model, rule)
            state = sum(t.numel() for name in attachment.rules for t in attachment.state(name).values())
            assert state <= sum(p.numel() for p in model.parameters())

        peaks.append(allocated.peak(lambda model=model, x=x: model(x).square().mean().backward()))
    assert peaks[1] <= 1.02 * peaks[0]


class Transposed(lawful.FeedbackAlignment):
    """A user's slip: B of the shape of Wᵀ."""

    def feedback(self, weight, state):
        return state["B"].t()


def test_a_rule_whose_B_has_another_shape_is_refused_at_once():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(SettingError, match=r"0\.weight's shape \(3, 2\); got \(2, 3\)"):
        lawful.attach(model, Transposed())
    assert type(model[0]) is nn.Linear
    lawful.attach(model, lawful.FeedbackAlignment())


def test_a_weight_changed_between_the_passes_is_noticed():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    lawful.attach(model, lawful.UniformSignSymmetry())
    out = model(torch.ones(2, 4))
    with torch.no_grad():
        model[1].weight.mul_(-1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_one_set_of_weights_under_many_magnitudes():
    """vmap over the rule's state alone: an ensemble that shares its weights."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    attachment = lawful.attach(model, lawful.FixedMagnitudeSignSymmetry())
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    states = {name: torch.rand(5, *b.shape, dtype=torch.float64) for name, b in model.named_buffers()}
    x = torch.randn(6, 3, dtype=torch.float64)

    def loss(parameters, state):
        return torch.func.functional_call(model, (parameters, state), (x,)).square().sum()

    stacked = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, states)
    for i in range(5):
        attachment.state("2.weight")["M"].copy_(states["2.lawful_weight_M"][i])
        model.zero_grad()
        loss(dict(model.named_parameters()), dict(model.named_buffers())).backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(stacked[name][i], p.grad, rtol=1e-12, atol=1e-12)


def test_complex_weights_are_refused_by_name_and_left_to_autograd():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, dtype=torch.complex64))
    with pytest.raises(lawful.LawfulError, match=r"1\.weight: it is complex"):
        lawful.attach(model, lawful.FeedbackAlignment())
    attachment = lawful.attach(model, {"0": lawful.FeedbackAlignment(), "1": lawful.Backprop()})
    assert "Backprop" in attachment.coverage["1.weight"]


OPTIONS = {"rho-fa": "rho-fa:rho=0.5", "low-rank-fa": "low-rank-fa:rank=2", "sparse-fa": "sparse-fa:density=0.5"}
LAYERWISE = [OPTIONS.get(name, name) for name, where in RULES.items() if issubclass(resolve_name(where), lawful.Rule)]


@pytest.mark.parametrize("text", LAYERWISE)
def test_every_registered_rule_attaches_and_sends_its_error(text):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    attachment = lawful.attach(model, parse_rule(text))
    x = torch.randn(5, 3)
    h = model[1](model[0](x))
    h.retain_grad()
    error = torch.tensor([[1.0, 0.5]]).expand(5, 2)  # 1 and 1 may cancel where B is ±s
    (model[2](h) * error).sum().backward()
    B = attachment.feedback_of("2.weight")
    if text != "sign-fa":  # the sign of δB
        torch.testing.assert_close(h.grad, error @ B, rtol=1e-5, atol=1e-6)
    assert bool(model[0].weight.grad.any())


@pytest.mark.parametrize("rule", [lawful.KolenPollack(), lawful.FeedbackAlignment(init="aligned")], ids=repr)
def test_a_state_made_from_a_zero_weight_is_still_made_from_the_weight(rule):
    """Data-parallel training leaves out of its broadcasts only what every process draws alike."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.zero_()
    lawful.attach(model, rule)
    assert model._ddp_params_and_buffers_to_ignore == []


def test_a_rule_that_cannot_start_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.zero_()
    with pytest.raises(lawful.LawfulError, match="is zero"):
        lawful.attach(model, lawful.RhoAlignedFeedback(0.5))
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]


@pytest.mark.parametrize("frozen", [False, True])
def test_each_of_two_optimizers_moves_the_rules_of_its_own_weights(frozen):
    """W − B = (1 − λ)ᵗ (W(0) − B(0)) with t the steps of the optimizer that holds W."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    attachment = lawful.attach(model, lawful.KolenPollack(decay=0.1))
    halves = [model[0].parameters(), model[2].parameters()]
    optimizers = [torch.optim.SGD(half, lr=0.0 if frozen else 0.05) for half in halves]
    for optimizer in optimizers:
        attachment.follow(optimizer)
    apart = {n: attachment.weight(n).detach() - attachment.feedback_of(n) for n in attachment.rules}
    steps = {"0.weight": 3, "2.weight": 2}
    for optimizer in (optimizers[0], optimizers[1], optimizers[0], optimizers[1], optimizers[0]):
        optimizer.zero_grad()
        model(torch.randn(5, 3).double()).square().sum().backward()
        optimizer.step()
    assert attachment.steps == 5
    for name, t in steps.items():
        now = attachment.weight(name).detach() - attachment.feedback_of(name)
        torch.testing.assert_close(now, 0.9**t * apart[name], rtol=1e-12, atol=1e-12)


def test_one_optimizer_on_copies_of_the_weights_still_moves_the_rules():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    attachment = lawful.attach(model, lawful.KolenPollack(decay=0.1))
    masters = [p.detach().clone().requires_grad_() for p in model.parameters()]
    optimizer = torch.optim.SGD(masters, lr=0.1)
    attachment.follow(optimizer)
    before = attachment.weight("2.weight").detach().clone()
    optimizer.step()
    torch.testing.assert_close(attachment.weight("2.weight").detach(), 0.9 * before)


def test_a_subclass_given_one_B_a_name_stays_one():
    class Mine(lawful.FeedbackAlignment):
        pass

    given = {"0.weight": torch.ones(4, 3), "1.weight": torch.ones(2, 4)}
    attachment = lawful.attach(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), Mine(B=given, seed=3))
    assert {type(rule) for rule in attachment.rules.values()} == {Mine}
    assert all(rule.seed == 3 for rule in attachment.rules.values())


@pytest.mark.parametrize("listed", [False, True])
def test_rules_leave_frozen_weights_alone(listed):
    """Fine-tuning a head does not decay the backbone."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    model[0].requires_grad_(False)
    attachment = lawful.attach(model, lawful.KolenPollack(decay=0.1))
    optimizer = torch.optim.SGD(model.parameters() if listed else model[2].parameters(), lr=0.1)
    attachment.follow(optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.randn(5, 3).double()).square().sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before[0])
    assert not torch.equal(model[2].weight, before[2])
