"""attach beside the rest of PyTorch: functional transforms, compile, autocast, copies, checkpoints, double backward."""

from __future__ import annotations

import pickle
import shutil

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap

import lawful
from cases import MLP
from lawful.errors import AttachmentError, DoubleBackwardError, UnfollowedRuleError
from lawful.rules.base import Rule

CASE = MLP((3, 6, 5, 2))


def attached(seed=0, **options):
    model = CASE.module(seed=seed)
    return model, lawful.attach(model, lawful.FeedbackAlignment(seed=seed, **options))


def gradients(model, x):
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def loss_of(model):
    return lambda p, b, x: functional_call(model, (p, b), (x,)).square().sum()


def test_functional_grad_equals_backward():
    model, _ = attached()
    x = CASE.batch()
    expected = gradients(model, x)
    got = grad(loss_of(model))(dict(model.named_parameters()), dict(model.named_buffers()), x)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-13, atol=1e-13)


def test_vmap_over_an_ensemble_of_seeds_uses_each_members_B():
    models = [attached(seed)[0] for seed in range(3)]
    x = CASE.batch()
    parameters, buffers = stack_module_state(models)
    got = vmap(grad(loss_of(models[0])), in_dims=(0, 0, None))(parameters, buffers, x)
    for i, model in enumerate(models):
        for name, expected in gradients(model, x).items():
            torch.testing.assert_close(got[name][i], expected, rtol=1e-12, atol=1e-12)


def test_per_sample_gradients_by_vmap():
    model, _ = attached()
    x = CASE.batch()
    p, b = dict(model.named_parameters()), dict(model.named_buffers())
    got = vmap(grad(loss_of(model)), in_dims=(None, None, 0))(p, b, x)
    for name, expected in gradients(model, x).items():
        torch.testing.assert_close(got[name].sum(0), expected, rtol=1e-12, atol=1e-12)


def test_forward_mode_uses_the_true_weights():
    model, attachment = attached()
    x, v = CASE.batch(seed=1), CASE.batch(seed=2)
    _, tangent = jvp(model, (x,), (v,))
    attachment.remove()
    torch.testing.assert_close(tangent, jvp(model, (x,), (v,))[1])


def test_jacrev_sends_errors_through_B():
    model, attachment = attached()
    x = CASE.batch(1)[0]
    J = jacrev(model)(x)
    rows = []
    for k in range(2):
        xi = x.clone().requires_grad_()
        model(xi)[k].backward()
        rows.append(xi.grad)
    torch.testing.assert_close(J, torch.stack(rows))
    attachment.remove()
    assert not torch.allclose(J, jacrev(model)(x))


NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch's inductor needs a C++ compiler")


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=NEEDS_COMPILER)])
def test_compile_fullgraph(backend):
    model, attachment = attached()
    x = CASE.batch()
    expected = gradients(model, x)
    got = gradients(torch.compile(model, fullgraph=True, backend=backend), x)
    for name, value in expected.items():
        torch.testing.assert_close(got[f"_orig_mod.{name}"], value, rtol=1e-12, atol=1e-12)
    attachment.remove()
    assert not torch.allclose(gradients(model, x)["0.weight"], expected["0.weight"])


def test_autocast_computes_in_bfloat16_and_returns_float32_gradients():
    model = CASE.module(dtype=torch.float32)
    lawful.attach(model, lawful.FeedbackAlignment(init="aligned"))
    plain = CASE.module(dtype=torch.float32)
    x = CASE.batch(dtype=torch.float32)
    grads = []
    for m in (model, plain):
        with torch.autocast("cpu", torch.bfloat16):
            out = m(x)
            assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
        grads.append([p.grad for p in m.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, theirs)


def test_pickle_round_trip():
    model, _ = attached()
    copy = pickle.loads(pickle.dumps(model))
    x = CASE.batch()
    for name, value in gradients(model, x).items():
        assert torch.equal(gradients(copy, x)[name], value)
    lawful.attachment_of(copy).remove()
    assert type(copy[0]) is nn.Linear


def test_plain_checkpoints_load_strictly_and_the_attachment_carries_the_rest():
    model, attachment = attached()
    plain = CASE.module(seed=9)
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(model.state_dict(), strict=True)
    other, theirs = attached()
    theirs.feedback["2.weight"].zero_()
    theirs.load_state_dict(attachment.state_dict())
    assert torch.equal(theirs.feedback["2.weight"], attachment.feedback["2.weight"])
    _, stranger = attached(seed=4)
    with pytest.raises(AttachmentError, match="other rules"):
        stranger.load_state_dict(attachment.state_dict())


def input_gradient(model, x):
    return torch.autograd.grad(model(x).square().sum(), x, create_graph=True)[0]


@pytest.mark.parametrize("target", ["input", "first weight", "last weight", "last bias"])
def test_a_graph_of_gradients_is_refused_at_once(target):
    model, _ = attached()
    x = CASE.batch().requires_grad_()
    wanted = {"input": x, "first weight": model[0].weight, "last weight": model[4].weight, "last bias": model[4].bias}
    with pytest.raises(DoubleBackwardError, match="remove"):
        torch.autograd.grad(model(x).square().sum(), wanted[target], create_graph=True)


def test_nested_functional_grad_and_hessian_raise():
    model, _ = attached()
    x = CASE.batch(1)[0]

    def scalar(x):
        return model(x).square().sum()

    with pytest.raises(DoubleBackwardError):
        grad(lambda x: grad(scalar)(x).square().sum())(x)
    with pytest.raises(DoubleBackwardError):
        torch.func.hessian(scalar)(x)


def test_double_backward_works_again_after_remove():
    model, attachment = attached()
    attachment.remove()
    x = CASE.batch().requires_grad_()
    input_gradient(model, x).square().sum().backward()
    assert torch.isfinite(x.grad).all()


class Learner(Rule):
    """A rule whose feedback drifts; only tests use it."""

    name = "learner"
    learns = True

    def init(self, weight, generator):
        return {"B": torch.zeros_like(weight)}

    def feedback(self, weight, state):
        return state["B"]

    def potential(self, weight, state):
        return None

    def after_step(self, weight, state):
        state["B"].add_(1.0)


def test_learning_rules_move_after_each_step_and_raise_unfollowed():
    model = CASE.module()
    attachment = lawful.attach(model, Learner())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    gradients(model, CASE.batch())
    with pytest.raises(UnfollowedRuleError, match="follow"):
        optimizer.step()
    attachment.follow(optimizer).follow(optimizer)
    optimizer.step()
    assert attachment.steps == 1 and attachment.feedback["0.weight"].unique().tolist() == [1.0]
    attachment.remove()
    optimizer.step()


def test_optimizer_state_survives_remove():
    model, attachment = attached()
    optimizer = torch.optim.Adam(model.parameters())
    gradients(model, CASE.batch())
    optimizer.step()
    before = {k: v["exp_avg"].clone() for k, v in optimizer.state_dict()["state"].items()}
    attachment.remove()
    gradients(model, CASE.batch())
    assert all(torch.equal(optimizer.state_dict()["state"][k]["exp_avg"], v) for k, v in before.items())
    optimizer.step()
