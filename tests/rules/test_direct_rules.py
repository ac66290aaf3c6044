"""Direct rules: the signal against NumPy, what D is, and the projection of monotone weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lawful.errors import SettingError
from lawful.rules.base import generator_for
from lawful.rules.direct_base import DirectRule
from lawful.rules.direct_feedback_alignment import DirectFeedbackAlignment
from lawful.rules.direct_random_target_projection import DirectRandomTargetProjection
from lawful.rules.monotone_dfa import MonotoneDFA
from lawful.rules.shared_projection import SharedProjection

RULES = [
    make(seed=1) for make in (DirectFeedbackAlignment, DirectRandomTargetProjection, MonotoneDFA, SharedProjection)
]
each_rule = pytest.mark.parametrize("rule", RULES, ids=repr)


def state_of(rule: DirectRule, outputs: int, out: int, tap: str = "1", dtype=torch.float64) -> dict[str, torch.Tensor]:
    return rule.init(torch.empty(outputs, out, dtype=dtype), generator_for(rule.seed, rule.stream(tap)))


@each_rule
def test_signal_is_the_formula_in_torch_and_numpy(rule):
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    labels = torch.tensor([0, 3, 1, -100, 2, 2])
    (error,) = torch.autograd.grad(F.cross_entropy(logits, labels), logits)
    state = state_of(rule, 4, 7)
    D = state["D"].numpy()
    expected = error.numpy() @ D
    if isinstance(rule, DirectRandomTargetProjection):
        expected = np.array([-D[label] / 5 if label >= 0 else 0 * D[0] for label in labels.tolist()])
    signal = rule.signal(error, state)
    assert signal.dtype == torch.float64
    np.testing.assert_allclose(signal.numpy(), expected, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(rule.signal(error.numpy(), {"D": D}), expected, rtol=1e-13, atol=1e-15)
    np.testing.assert_array_equal(rule.signal(0 * error, state).numpy(), np.zeros((6, 7)))


@each_rule
def test_D_depends_on_seed_and_stream_only_and_follows_the_dtype(rule):
    first = state_of(rule, 4, 30)["D"]
    torch.manual_seed(5)
    assert torch.equal(first, state_of(rule, 4, 30)["D"])
    assert torch.equal(first.float(), state_of(rule, 4, 30, dtype=torch.float32)["D"])
    assert not torch.equal(first, state_of(type(rule)(seed=2), 4, 30)["D"])
    assert torch.equal(first, state_of(rule, 4, 30, tap="3")["D"]) == isinstance(rule, SharedProjection)
    size = float(state_of(rule, 50, 400)["D"].square().mean()) * 400
    assert abs(size - 1) < 0.05
    scaled = state_of(type(rule)(seed=1, scale=3.0), 4, 30)["D"]
    torch.testing.assert_close(scaled, first * 3 * 30**0.5, rtol=1e-12, atol=0)


@each_rule
def test_direct_rules_are_values(rule):
    assert copy.deepcopy(rule) is rule
    assert repr(eval(repr(rule), {type(rule).__name__: type(rule)})) == repr(rule)
    with pytest.raises(SettingError, match="taps"):
        type(rule)(taps="block")


@pytest.mark.parametrize("out", [1, 3, 16, 17, 40])
def test_shared_projection_gives_narrow_blocks_the_first_columns(out):
    rule = SharedProjection(scale=1.0)
    wide, narrow = state_of(rule, 11, 64)["D"], state_of(rule, 11, out)["D"]
    assert torch.equal(narrow, wide[:, :out])


def test_monotone_feedback_is_positive_and_weights_are_clipped():
    rule = MonotoneDFA()
    assert (state_of(rule, 3, 50)["D"] > 0).all()
    weight = torch.tensor([[-1.0, 0.0, 0.5]])
    rule.project(weight)
    assert torch.equal(weight, torch.tensor([[1e-6, 1e-6, 0.5]]))
    for other in RULES:
        if not isinstance(other, MonotoneDFA):
            untouched = torch.tensor([[-1.0, 2.0]])
            other.project(untouched)
            assert torch.equal(untouched, torch.tensor([[-1.0, 2.0]]))
