"""Predicted forms against exact arithmetic: feedback alignment by hand, in fractions."""

from fractions import Fraction

import pytest
import torch

from lawful.training.heavy_ball import HeavyBall, constants


@pytest.mark.parametrize(("lower", "upper"), [(Fraction(0), Fraction(0)), (Fraction(1, 5), Fraction(2, 5))])
@pytest.mark.parametrize("beta", [Fraction(0), Fraction(9, 10)])
def test_feedback_alignment_of_two_scalars_in_exact_arithmetic(beta, lower, upper):
    """Output w₂w₁ with error e: Δw₁ by e·b, Δw₂ by e·w₁; q = ½w₁² − b·w₂, decay λ below and 2λ above."""
    lr, b = Fraction(1, 10), Fraction(7, 3)
    w, v = [Fraction(3, 2), Fraction(1, 3)], [Fraction(0), Fraction(0)]

    def q():
        return w[0] ** 2 / 2 - b * w[1]

    form = HeavyBall(q(), 2, lr=lr, decay=lower, momentum=beta)
    for step in range(8):
        e = w[0] * w[1] - step % 3
        g = (e * b, e * w[0])
        v = [beta * v[i] + g[i] + decay * w[i] for i, decay in enumerate((lower, upper))]
        w = [w[i] - lr * v[i] for i in range(2)]
        assert form.step((lr * v[0]) ** 2 / 2) == q()


def test_momentum_approaches_its_flow():
    """q̈ + γq̇ = ‖Ẇ_p‖² for Ẇ_p = e^{−t}, γ = 2: q(T) from the recursion, lr = η², β = 1 − γη, against the solution."""

    def off(eta, time=3.0, gamma=2.0):
        form = HeavyBall(0.0, 2, lr=eta**2, momentum=1 - gamma * eta)
        steps = round(time / eta)
        for s in range(steps):  # W moves by η·Ẇ a step, so d = ½(ηẆ)²
            q = form.step(0.5 * (eta * torch.tensor(-s * eta, dtype=torch.float64).exp()) ** 2)
        # q̈ + 2q̇ = e^{−2t} from rest: q̇ = t·e^{−2t}, q = ¼ − (¼ + t/2)·e^{−2t}
        exact = 0.25 - (0.25 + time / 2) * torch.tensor(-2 * time, dtype=torch.float64).exp()
        return abs(float(q - exact))

    assert off(0.001) < 1e-3 and off(0.002) / off(0.001) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("change", [{"nesterov": True}, {"dampening": 0.5}, {"maximize": True}])
def test_other_optimisers_have_no_form(change):
    p = [torch.nn.Parameter(torch.zeros(1))]
    assert constants(torch.optim.SGD(p, lr=0.1, momentum=0.9)) == (0.0, 0.9)
    assert constants(torch.optim.SGD(p, lr=0.1, momentum=0.9, **change)) is None
    assert constants(torch.optim.Adam(p)) is None
    two = [{"params": p}, {"params": [torch.nn.Parameter(torch.zeros(1))], "weight_decay": 0.1}]
    assert constants(torch.optim.SGD(two, lr=0.1)) is None
