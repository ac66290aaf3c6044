"""Time of the exact reduced flow at growing width, precomputation included, against the full flow where it fits.

Run: python benchmarks/reduced_flow.py
"""

from __future__ import annotations

import time

import numpy as np

from lawful.flows.field import Field
from lawful.flows.network import Network
from lawful.flows.reduced import ReducedFlow
from lawful.flows.solve import solve
from lawful.rules.feedback_alignment import FeedbackAlignment

D, N, FULL_UP_TO = 20, 15, 1_000


def main() -> None:
    print(f"Two-layer linear net under feedback alignment, d = {D}, n = {N}, flow to t = 5 by dop853, rtol 1e-10")
    print(
        f"{'width':>9} {'draw s':>7} {'Gram s':>7} {'solve s':>8} {'total s':>8} {'loss':>9} {'full s':>7} "
        f"{'difference':>11}"
    )
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, D))
    Y = X @ rng.standard_normal(D) / D**0.5
    for width in (100, 1_000, 10_000, 100_000, 1_000_000):
        marks = [time.perf_counter()]
        network = Network.random((D, width, 1), init_scale=(0.1 / width**0.5, width**-0.5), seed=1)
        marks.append(time.perf_counter())
        rule = FeedbackAlignment(init="aligned")
        reduced = ReducedFlow(network, X, Y, rule=rule)
        marks.append(time.perf_counter())
        got = solve(reduced, 5.0, num_points=50, check=False)
        marks.append(time.perf_counter())
        draw, gram, run = np.diff(marks)
        full_time = difference = ""
        if width <= FULL_UP_TO:
            start = time.perf_counter()
            full = solve(Field(network, rule, X, Y), 5.0, num_points=50, check=False)
            full_time = f"{time.perf_counter() - start:.2f}"
            difference = f"{np.abs(reduced.lift(got.final).theta() - full.final).max():.1e}"
        print(
            f"{width:9} {draw:7.2f} {gram:7.2f} {run:8.2f} {marks[-1] - marks[0]:8.2f} {got.loss[-1]:9.1e} "
            f"{full_time:>7} {difference:>11}"
        )


if __name__ == "__main__":
    main()
