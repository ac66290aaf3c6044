"""Time of one field evaluation and of whole flows, against torch autograd on the same network, in one process.

Run: python benchmarks/flow.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

import lawful
from lawful.flows.field import Field
from lawful.flows.network import Network
from lawful.flows.solve import solve
from lawful.rules.feedback_alignment import FeedbackAlignment

SIZES = [(20, 50, 30), (100, 50, 200), (100, 100, 1000)]


def microseconds(call: Callable[[], object], repeat: int = 5) -> float:
    """Best of ``repeat`` means, each over about 50 ms."""
    call()
    start = time.perf_counter()
    call()
    number = max(1, int(0.05 / (time.perf_counter() - start)))
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        for _ in range(number):
            call()
        best = min(best, (time.perf_counter() - start) / number)
    return 1e6 * best


def torch_twin(network: Network, rule: FeedbackAlignment) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for i, W in enumerate(network.weights):
        linear = torch.nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=torch.float64)
        linear.weight.data = torch.from_numpy(W.copy())
        layers += [linear] if i == network.depth - 1 else [linear, torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers)
    lawful.attach(model, rule)
    return model


def main() -> None:
    torch.set_num_threads(1)
    print("One evaluation of the feedback-alignment field, two-layer ReLU net, float64, one thread")
    print(f"{'n':>5} {'d':>5} {'width':>6} {'NumPy us':>9} {'torch us':>9} {'torch/NumPy':>12}")
    for n, d, width in SIZES:
        rng = np.random.default_rng(0)
        network = Network.random((d, width, 1), activation="relu", seed=rng)
        X, Y = rng.standard_normal((n, d)), rng.standard_normal((n, 1))
        rule = FeedbackAlignment(seed=0)
        field, theta = Field(network, rule, X, Y), network.theta()
        model, inputs, targets = torch_twin(network, rule), torch.from_numpy(X), torch.from_numpy(Y)

        def step(
            model: torch.nn.Sequential = model, inputs: torch.Tensor = inputs, targets: torch.Tensor = targets
        ) -> None:
            model.zero_grad()
            (0.5 * (model(inputs) - targets).square().sum()).backward()

        step()
        got = np.concatenate([p.grad.numpy().ravel() for p in model.parameters() if p.grad is not None])
        assert np.abs(field(theta) + got).max() < 1e-10 * np.abs(got).max()
        ours, theirs = microseconds(lambda field=field, theta=theta: field(theta)), microseconds(step)
        print(f"{n:5} {d:5} {width:6} {ours:9.1f} {theirs:9.1f} {theirs / ours:12.2f}")

    print("\nWhole flows, n = 20, d = 50, width 30, t = 0.05, with the error check")
    print(f"{'activation':>10} {'method':>15} {'seconds':>8} {'evaluations':>12} {'error estimate':>15} {'loss':>10}")
    for activation, methods in (("linear", ("dop853", "rk4", "gauss-legendre")), ("relu", ("relu",))):
        rng = np.random.default_rng(0)
        network = Network.random((50, 30, 1), activation=activation, init_scale=(0.1, 1.0), seed=rng)
        X = rng.standard_normal((20, 50))
        field = Field(network, FeedbackAlignment(init="aligned"), X, X @ rng.standard_normal(50) / 50**0.5)
        for method in methods:
            start = time.perf_counter()
            got = solve(field, 0.05, method=method, num_points=20)
            print(
                f"{activation:>10} {method:>15} {time.perf_counter() - start:8.2f} {got.num_evaluations:12} "
                f"{got.error_estimate:15.1e} {got.loss[-1]:10.1e}"
            )


if __name__ == "__main__":
    main()
