"""Angles against explicit NumPy formulas; the model that is measured stays as it was."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lawful
from cases import MLP, feedback_gradients
from lawful.errors import AttachmentError, SettingError
from lawful.measures.angles import angle, cosine, gradient_angles, weight_angles


@given(theta=st.floats(0.01, 3.13), scale=st.floats(1e-3, 1e3))
def test_angle_of_two_directions(theta, scale):
    a, b = np.array([1.0, 0.0]), scale * np.array([np.cos(theta), np.sin(theta)])
    assert angle(a, b) == pytest.approx(np.degrees(theta), abs=1e-4)
    assert cosine(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(np.cos(theta), abs=1e-12)


def test_zero_has_no_direction_and_shapes_must_agree():
    assert angle(np.zeros(3), np.ones(3)) == 90.0
    with pytest.raises(SettingError, match="one shape"):
        cosine(np.ones((2, 3)), np.ones((3, 2)))


def _degrees(a, b):
    return np.degrees(np.arccos((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)))


def test_gradient_and_weight_angles_against_the_explicit_formula():
    case = MLP((4, 5, 6, 3))
    model, x = case.module(), case.batch()
    y = torch.ones(5, 3, dtype=torch.float64)
    attachment = lawful.attach(model, lawful.FeedbackAlignment(seed=3))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    error = (model(x) - y).detach().numpy()
    weights = {f"{n}.weight": m.weight.detach().numpy() for n, m in model.named_children() if n in "024"}
    back = {name: B.numpy() for name, B in attachment.feedback.items()}
    fed, _ = feedback_gradients(model, back, x.numpy(), error, "relu")
    true, _ = feedback_gradients(model, weights, x.numpy(), error, "relu")
    found = gradient_angles(model, lambda net: 0.5 * ((net(x) - y) ** 2).sum())
    assert found["0.weight"] > 10 and found["4.weight"] < 1e-4
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        assert found[name] == pytest.approx(_degrees(fed[name], true[name]), abs=1e-6)
    for name, value in weight_angles(model).items():
        assert value == pytest.approx(_degrees(weights[name], back[name]), abs=1e-6)
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert lawful.attachment_of(model) is attachment


def test_backprop_is_aligned_and_an_unattached_model_is_refused():
    case = MLP((3, 4, 1))
    model, x = case.module(), case.batch()
    with pytest.raises(AttachmentError):
        gradient_angles(model, lambda net: net(x).sum())
    lawful.attach(model, lawful.Backprop())
    assert max(gradient_angles(model, lambda net: net(x).sum()).values()) < 1e-4
    assert max(weight_angles(model).values()) < 1e-4


@pytest.mark.parametrize("size", [1e-4, 300.0])
def test_half_precision_has_room_for_an_angle(size):
    a = torch.full((4,), size, dtype=torch.float16)
    assert angle(a, a) == pytest.approx(0.0, abs=1e-4) and angle(a, -a) == pytest.approx(180.0, abs=1e-4)


def test_what_is_not_finite_has_no_angle():
    assert np.isnan(angle(torch.tensor([float("inf"), 1.0]), torch.tensor([-1.0, 0.0])))
