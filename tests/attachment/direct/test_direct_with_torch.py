"""Direct rules beside the rest of PyTorch: every way of running a model gives the eager gradients."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

import lawful
from cases import MLP
from lawful.errors import AttachmentError

CASE = MLP((4, 5, 6, 3), "tanh")
Y = torch.tensor([0, 2, 1, 2, 0])
cross_entropy = nn.functional.cross_entropy


def attached(seed=0):
    model = CASE.module()
    lawful.attach(model, lawful.DirectFeedbackAlignment(seed=seed))
    return model


def gradients(model, call=None):
    model.zero_grad()
    cross_entropy((call or model)(CASE.batch()), Y).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_close(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], rtol=1e-12, atol=1e-16), name


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_carry_the_rule(copied):
    model = attached()
    expected = gradients(model)
    twin = copied(model)
    assert lawful.attachment_of(twin).model is twin
    assert_close(gradients(twin), expected)
    lawful.attachment_of(twin).feedback["1"].zero_()
    assert_close(gradients(model), expected)
    assert (gradients(twin)["0.weight"] == 0).all()
    lawful.attachment_of(twin).remove()
    assert_close(gradients(twin), gradients(CASE.module()))


def test_remove_restores_backprop_bitwise_and_leaves_nothing():
    plain, model = CASE.module(), attached()
    assert not torch.equal(gradients(model)["0.weight"], gradients(plain)["0.weight"])
    lawful.attachment_of(model).remove()
    for name, gradient in gradients(plain).items():
        assert torch.equal(gradients(model)[name], gradient)
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks and not module._buffers
    with pytest.raises(AttachmentError, match="carries no rule"):
        lawful.attachment_of(model)
    lawful.attach(model, lawful.FeedbackAlignment())


def test_attaching_twice_raises():
    model = attached()
    with pytest.raises(AttachmentError, match="carries a rule already"):
        lawful.attach(model, lawful.DirectFeedbackAlignment())


def test_state_travels_also_to_a_model_that_has_not_run():
    model = attached(seed=1)
    expected = gradients(model)
    lawful.attachment_of(model).feedback["1"].mul_(2)
    changed = gradients(model)
    assert not torch.equal(changed["0.weight"], expected["0.weight"])
    assert list(model.state_dict()) == list(CASE.module().state_dict()), "plain checkpoints stay plain"
    saved = lawful.attachment_of(model).state_dict()
    twin = attached(seed=1)
    lawful.attachment_of(twin).load_state_dict(saved)
    assert_close(gradients(twin), changed)
    with pytest.raises(AttachmentError, match="other rules"):
        lawful.attachment_of(attached(seed=2)).load_state_dict(saved)


def test_compile_fullgraph():
    model = attached()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="run the model once before compiling"):
        compiled(CASE.batch())
    torch.compiler.reset()
    expected = gradients(model)
    assert_close(gradients(model, compiled), expected)


def test_export_of_the_forward_is_the_plain_graph():
    with torch.no_grad():
        ours, theirs = (torch.export.export(m, (CASE.batch(),)) for m in (attached(), CASE.module()))
    targets = [[str(node.target) for node in e.graph.nodes if node.op == "call_function"] for e in (ours, theirs)]
    assert targets[0] == targets[1]
    assert torch.equal(ours.module()(CASE.batch()), CASE.module()(CASE.batch()))


def test_torch_func():
    model = attached()
    expected, x = gradients(model), CASE.batch()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    assert_close(grad(lambda p: cross_entropy(functional_call(model, p, (x,)), Y))(parameters), expected)
    one = grad(lambda p, x, y: cross_entropy(functional_call(model, p, (x[None],)), y[None]))
    each = vmap(one, (None, 0, 0))(parameters, x, Y)
    assert_close({name: g.mean(0) for name, g in each.items()}, expected)


def test_an_ensemble_of_seeds_in_one_vmap():
    models = [attached(seed) for seed in range(3)]
    expected = [gradients(model) for model in models]
    parameters, buffers = torch.func.stack_module_state(models)
    base, x = models[0], CASE.batch()
    one = grad(lambda p, b: cross_entropy(functional_call(base, (p, b), (x,)), Y))
    stacked = vmap(one)({name: p.detach() for name, p in parameters.items()}, buffers)
    for i, mine in enumerate(expected):
        assert_close({name: g[i] for name, g in stacked.items()}, mine)


class Checkpointed(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        for layers in (self.inner[:2], self.inner[2:]):
            x = checkpoint(layers, x, use_reentrant=False)
        return x


def test_gradient_checkpointing():
    expected = gradients(attached())
    model = Checkpointed(CASE.module())
    lawful.attach(model, lawful.DirectFeedbackAlignment())
    gradients(model)
    for tap, D in lawful.attachment_of(model).feedback.items():
        other = attached()
        other(CASE.batch())
        D.copy_(lawful.attachment_of(other).feedback[tap.removeprefix("inner.")])
    assert_close({n.removeprefix("inner."): g for n, g in gradients(model).items()}, expected)


def test_bfloat16_autocast():
    model = CASE.module(dtype=torch.float32)
    attachment = lawful.attach(model, lawful.DirectFeedbackAlignment())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy(model(CASE.batch(dtype=torch.float32)), Y)
    loss.backward()
    low = model[0].weight.grad.clone()
    assert attachment.feedback["1"].dtype == torch.float32
    model.zero_grad()
    cross_entropy(model(CASE.batch(dtype=torch.float32)), Y).backward()
    assert 0 < (low - model[0].weight.grad).norm() < 0.05 * low.norm()


def test_a_frozen_block_is_left_alone():
    model = attached()
    model[0].requires_grad_(False)
    cross_entropy(model(CASE.batch()), Y).backward()
    assert model[0].weight.grad is None and model[2].weight.grad is not None
    assert lawful.attachment_of(model).coverage["0.weight"] == "frozen: requires no gradient"


def test_training_lowers_the_loss_with_every_direct_rule():
    torch.manual_seed(0)
    x = torch.randn(200, 8)
    y = (x @ torch.randn(8, 4)).argmax(1)
    for rule in (lawful.DirectFeedbackAlignment(), lawful.SharedProjection(), lawful.DirectRandomTargetProjection()):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
        lawful.attach(model, rule)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(60):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
        assert (model(x).argmax(1) == y).float().mean() > 0.8, rule


def test_what_was_compiled_before_learns_of_the_rule():
    """dynamo does not look for new hooks by itself."""
    model = CASE.module()
    compiled = torch.compile(model, backend="aot_eager")
    x = CASE.batch()
    plain = gradients(model, compiled)
    attachment = lawful.attach(model, lawful.DirectFeedbackAlignment())
    model(x)  # draws D
    taught = gradients(model, compiled)
    assert_close(taught, gradients(model, model))
    assert not torch.allclose(taught["0.weight"], plain["0.weight"])
    attachment.remove()
    assert_close(gradients(model, compiled), plain)
