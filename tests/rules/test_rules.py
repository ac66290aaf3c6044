"""Every layerwise rule against its formula in NumPy, its potential by finite differences, its draws and dtypes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch

from lawful.errors import SettingError
from lawful.rules.backprop import Backprop
from lawful.rules.base import Rule, generator_for
from lawful.rules.batchwise_magnitude_sign_symmetry import BatchwiseMagnitudeSignSymmetry
from lawful.rules.feedback_alignment import FeedbackAlignment
from lawful.rules.fixed_magnitude_sign_symmetry import FixedMagnitudeSignSymmetry
from lawful.rules.kolen_pollack import KolenPollack
from lawful.rules.low_rank_feedback import LowRankFeedback
from lawful.rules.rho_aligned_feedback import RhoAlignedFeedback
from lawful.rules.sign_feedback_alignment import SignFeedbackAlignment
from lawful.rules.sparse_feedback import SparseFeedback
from lawful.rules.uniform_sign_symmetry import UniformSignSymmetry
from lawful.rules.weight_mirror import WeightMirror

Array = np.ndarray

CASES: list[tuple[Rule, Callable[[Array, dict[str, Array]], Array], bool]] = [
    (Backprop(), lambda W, s: W, True),
    (FeedbackAlignment(seed=2), lambda W, s: s["B"], True),
    (UniformSignSymmetry(), lambda W, s: np.sign(W) / np.sqrt(W[0].size), True),
    (UniformSignSymmetry(scale=0.3), lambda W, s: 0.3 * np.sign(W), True),
    (UniformSignSymmetry(adaptive=True), lambda W, s: np.abs(W).sum() / W.size * np.sign(W), False),
    (FixedMagnitudeSignSymmetry(seed=2), lambda W, s: np.where(W > 0, s["M"], -s["M"]), True),
    (BatchwiseMagnitudeSignSymmetry(seed=2), lambda W, s: np.where(W > 0, s["M"], -s["M"]), False),
    (KolenPollack(seed=2), lambda W, s: W + s["C"], True),
    (KolenPollack(seed=2, decay=0.1), lambda W, s: W + s["C"], True),
    (WeightMirror(seed=2, rate=0.1), lambda W, s: s["B"], False),
    (RhoAlignedFeedback(0.6, seed=2), lambda W, s: s["B"], True),
    (LowRankFeedback(2, seed=2), lambda W, s: s["B"], True),
    (SparseFeedback(0.5, seed=2), lambda W, s: s["B"], True),
    (SignFeedbackAlignment(seed=2), lambda W, s: s["B"], False),
]
each_rule = pytest.mark.parametrize("rule", [case[0] for case in CASES], ids=repr)
SHAPES = [(4, 6), (1, 5), (3, 2, 3, 3)]


def weight_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Elements of both signs, at least 0.1 away from zero, where the sign rules have their kink."""
    generator = torch.Generator().manual_seed(7)
    draw = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    return (draw + 0.1 * draw.sign()).to(dtype)


def state_of(rule: Rule, weight: torch.Tensor, parameter: str = "0.weight") -> dict[str, torch.Tensor]:
    return rule.init(weight, generator_for(rule.seed, parameter))


def to_numpy(state: dict[str, torch.Tensor]) -> dict[str, Array]:
    return {key: tensor.numpy().copy() for key, tensor in state.items()}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("rule", "formula", "_"), CASES, ids=lambda value: repr(value) if isinstance(value, Rule) else ""
)
def test_feedback_is_the_formula_in_torch_and_numpy(rule, formula, _, shape):
    weight = weight_of(shape)
    state = state_of(rule, weight)
    moved = -weight + 0.01  # not the weight of attachment
    expected = formula(moved.numpy(), to_numpy(state))
    in_torch = rule.feedback(moved, state)
    in_numpy = rule.feedback(moved.numpy(), to_numpy(state))
    assert in_torch.shape == shape and isinstance(in_numpy, np.ndarray)
    np.testing.assert_allclose(in_torch.numpy(), expected, rtol=1e-15, atol=0)
    np.testing.assert_allclose(in_numpy, expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    ("rule", "has_potential"),
    [(case[0], case[2]) for case in CASES],
    ids=lambda v: repr(v) if isinstance(v, Rule) else "",
)
def test_feedback_is_the_gradient_of_the_potential(rule, has_potential):
    weight = weight_of((4, 6))
    state = to_numpy(state_of(rule, weight))
    W = weight.numpy()
    if not has_potential:
        assert rule.potential(W, state) is None
        return
    h = 2.0**-6  # Ψ is quadratic at most between kinks, so the central difference is exact up to rounding
    difference = np.zeros_like(W)
    for index in np.ndindex(W.shape):
        step = np.zeros_like(W)
        step[index] = h
        difference[index] = (rule.potential(W + step, state).sum() - rule.potential(W - step, state).sum()) / (2 * h)
    np.testing.assert_allclose(rule.feedback(W, state), difference, rtol=0, atol=1e-12)


@each_rule
def test_autograd_of_the_potential_is_the_feedback(rule):
    weight = weight_of((4, 6)).requires_grad_()
    state = state_of(rule, weight)
    potential = rule.potential(weight, state)
    if potential is not None:
        (gradient,) = torch.autograd.grad(potential.sum(), weight)
        torch.testing.assert_close(gradient, rule.feedback(weight.detach(), state), rtol=1e-14, atol=1e-15)


@each_rule
def test_draws_depend_on_seed_and_name_only(rule):
    weight = weight_of((4, 6))
    first = state_of(rule, weight)
    torch.manual_seed(99)
    again = state_of(rule, weight)
    other_name = state_of(rule, weight, "2.weight")
    for key, tensor in first.items():
        assert torch.equal(tensor, again[key])
        assert not tensor.requires_grad
        if key in {"B", "C", "M"}:
            assert not torch.equal(tensor, other_name[key])
    if {"B", "C", "M"} & first.keys():
        other = copy.copy(rule)
        other.seed = 3
        assert not torch.equal(rule.feedback(weight, first), rule.feedback(weight, state_of(other, weight)))


@each_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dtype_follows_the_weight_and_the_numbers_do_not_change(rule, dtype):
    weight = weight_of((4, 6), torch.bfloat16)
    exact = rule.feedback(weight.double(), state_of(rule, weight.double()))
    feedback = rule.feedback(weight.to(dtype), state_of(rule, weight.to(dtype)))
    assert feedback.dtype == dtype
    torch.testing.assert_close(feedback.double(), exact, rtol=0, atol=8 * torch.finfo(dtype).eps)
    rule.after_step(weight.to(dtype), state_of(rule, weight.to(dtype)))


@each_rule
def test_rules_are_values(rule):
    assert copy.deepcopy(rule) is rule
    assert repr(pickle.loads(pickle.dumps(rule))) == repr(rule)
    made = eval(repr(rule), {type(rule).__name__: type(rule)})  # the repr is the call
    assert repr(made) == repr(rule)


@each_rule
def test_only_sign_feedback_overrides_the_transport(rule):
    weight = weight_of((4, 6)).numpy()
    delta = np.linspace(-1, 1, 12).reshape(3, 4)
    B = rule.feedback(weight, to_numpy(state_of(rule, weight_of((4, 6)))))
    expected = np.sign(delta @ B) if isinstance(rule, SignFeedbackAlignment) else delta @ B
    np.testing.assert_array_equal(rule.transport(delta, B), expected)


@each_rule
def test_feedback_is_traceable_and_vectorised(rule):
    weights = torch.stack([weight_of((4, 6)), -2 * weight_of((4, 6))])
    states = [state_of(rule, weight, f"{i}.weight") for i, weight in enumerate(weights)]
    stacked = {key: torch.stack([state[key] for state in states]) for key in states[0]}
    together = torch.vmap(rule.feedback)(weights, stacked)
    for i, state in enumerate(states):
        torch.testing.assert_close(together[i], rule.feedback(weights[i], state), rtol=1e-15, atol=0)
    traced = torch.compile(rule.feedback, fullgraph=True, backend="eager")(weights[0], states[0])
    assert torch.equal(traced, rule.feedback(weights[0], states[0]))


def test_kolen_pollack_difference_decays_exactly_under_any_optimizer():
    rule = KolenPollack(seed=1, decay=0.01)
    weight = torch.nn.Parameter(weight_of((5, 7)))
    state = state_of(rule, weight)
    W0, B0 = weight.detach().clone(), rule.feedback(weight.detach(), state)
    optimizer = torch.optim.Adam([weight], lr=0.1)
    for t in range(1, 201):
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        optimizer.step()
        with torch.no_grad():
            rule.after_step(weight, state)
        difference = weight.detach() - rule.feedback(weight.detach(), state)
        assert (difference - 0.99**t * (W0 - B0)).abs().max() <= 1e-12
    assert rule.learns and not KolenPollack().learns


def angle(A: torch.Tensor, B: torch.Tensor) -> float:
    return float(torch.rad2deg(torch.acos(torch.cosine_similarity(A.flatten(), B.flatten(), dim=0))))


@pytest.mark.parametrize("shape", [(30, 40), (8, 4, 3, 3)], ids=str)
def test_weight_mirror_turns_to_the_weight_and_its_size_stays(shape):
    rule = WeightMirror(seed=0, rate=0.05)
    weight = 0.2 * weight_of(shape)
    state = state_of(rule, weight)
    angles = [angle(weight, state["B"])]
    for _ in range(4):
        for _ in range(100):
            rule.after_step(weight, state)
        angles.append(angle(weight, state["B"]))
    assert angles[0] > 70
    # the stationary noise of the docstring, summed over the elements
    rows = weight.flatten(1).square().sum(1)
    noise = 0.05 / 1.95 * (weight[0].numel() + 1) * rows.sum() / 128
    predicted = float(torch.rad2deg(torch.atan((noise / weight.square().sum()).sqrt())))
    assert max(angles[1:]) < 1.5 * predicted < 30
    assert 0.8 < state["B"].norm() / weight.norm() < 1.2


def test_weight_mirror_update_is_the_published_one_on_its_noise():
    rule = WeightMirror(seed=0, rate=0.3, samples=5, every=2)
    weight = weight_of((3, 4))
    state = state_of(rule, weight)
    B0 = state["B"].numpy().copy()
    rule.after_step(weight, state)
    np.testing.assert_array_equal(state["B"].numpy(), B0)  # no phase at an odd step
    rule.after_step(weight, state)
    x = torch.randn(5, 4, generator=generator_for(int(state["key"]), "step 2"), dtype=torch.float64).numpy()
    y = x @ weight.numpy().T
    np.testing.assert_allclose(state["B"].numpy(), 0.7 * B0 + 0.3 * y.T @ x / 5, rtol=1e-13)


def test_batchwise_magnitudes_are_fresh_reproducible_and_uniform():
    rule = BatchwiseMagnitudeSignSymmetry(seed=4, scale=1.0)
    weight = weight_of((40, 50))
    state, replay = state_of(rule, weight), state_of(rule, weight)
    seen = [state["M"].clone()]
    for _ in range(3):
        rule.after_step(weight, state)
        seen.append(state["M"].clone())
    for i, M in enumerate(seen):
        assert 0 <= M.min() and M.max() <= 3**0.5
        assert abs(float(M.mean()) - 3**0.5 / 2) < 5 * 0.5 / 2000**0.5
        assert all(abs(np.corrcoef(M.flatten(), other.flatten())[0, 1]) < 0.12 for other in seen[:i])
    replay["step"].fill_(2)  # what a resumed run loads
    rule.after_step(weight, replay)
    assert torch.equal(replay["M"], seen[3])


def test_fixed_magnitudes_are_positive_with_the_asked_size():
    M = state_of(FixedMagnitudeSignSymmetry(scale=2.0), weight_of((40, 50)))["M"]
    assert 0 <= M.min() and M.max() <= 2 * 3**0.5
    assert abs(float(M.square().mean()) / 4 - 1) < 0.1


@pytest.mark.parametrize("rho", [-1.0, 0.0, 0.5, 1.0])
def test_rho_is_the_correlation_with_the_initial_weight(rho):
    weight = 0.01 * weight_of((100, 120))
    B = state_of(RhoAlignedFeedback(rho), weight)["B"]
    assert abs(float(torch.cosine_similarity(weight.flatten(), B.flatten(), dim=0)) - rho) < 5 / 12000**0.5
    assert abs(float(B.norm() / weight.norm()) - 1) < 0.05
    if abs(rho) == 1:
        assert torch.equal(B, rho * weight)


@pytest.mark.parametrize("rho", [-1.0, -0.3, 0.0, 0.5, 1.0])
def test_a_correlation_can_be_exact(rho):
    weight = 0.01 * weight_of((3, 4))
    B = state_of(RhoAlignedFeedback(rho, exact=True), weight)["B"]
    assert abs(float((weight * B).sum() / (weight.norm() * B.norm())) - rho) < 1e-14
    assert abs(float(B.norm() / weight.norm()) - 1) < 1e-14
    with pytest.raises(SettingError, match="two elements"):
        state_of(RhoAlignedFeedback(0.5, exact=True), weight_of((1, 1)))


@pytest.mark.parametrize(("rank", "expected"), [(1, 1), (3, 3), (50, 10)])
def test_low_rank_feedback_has_its_rank_and_size(rank, expected):
    B = state_of(LowRankFeedback(rank), weight_of((10, 4, 3, 3)))["B"]
    assert torch.linalg.matrix_rank(B.flatten(1)) == expected
    sizes = [state_of(LowRankFeedback(rank, scale=2.0), weight_of((30, 40)), str(i))["B"].square() for i in range(50)]
    assert abs(float(torch.stack(sizes).mean()) - 4) < 0.6


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_sparse_feedback_has_its_density_and_size(density):
    B = state_of(SparseFeedback(density, scale=2.0), weight_of((200, 300)))["B"]
    assert abs(float((B != 0).double().mean()) - density) < 5 * (density * (1 - density) / 60000) ** 0.5 + 1e-12
    assert abs(float(B.square().mean()) / 4 - 1) < 0.1


@pytest.mark.parametrize(
    "make",
    [
        lambda: UniformSignSymmetry(scale=-1.0),
        lambda: UniformSignSymmetry(scale=1.0, adaptive=True),
        lambda: FixedMagnitudeSignSymmetry(scale=float("nan")),
        lambda: KolenPollack(decay=1.0),
        lambda: WeightMirror(rate=0.0),
        lambda: WeightMirror(samples=0),
        lambda: RhoAlignedFeedback(1.1),
        lambda: state_of(RhoAlignedFeedback(0.5), torch.zeros(2, 3)),
        lambda: LowRankFeedback(0),
        lambda: SparseFeedback(0.0),
        lambda: SignFeedbackAlignment(magnitude=-1.0),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(SettingError):
        make()
