"""Time and memory of a training step with a ledger ÷ the same step without one.

Every round times a turn of ten steps of every variant, in rotating order, so that ``split_every=10`` pays its one split
in every turn; the table shows the median over rounds of each round's ratio to that round's plain turn. "plain again" is
a second, identical training without ledger: the spread that a ratio has by itself.

Run: python benchmarks/ledger.py [--rounds N] [--threads N] [--only NAME …] [--without-numba] [--memory]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from importlib import metadata

import torch
from torch import nn

import lawful
from lawful.conservation import compiled

Turn = Callable[[], None]
STEPS = 10


def mlp() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    layers = [nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)]
    return nn.Sequential(*layers), torch.randn(128, 784), torch.randint(10, (128,))


def cnn() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    blocks = [(3, 32), (32, 64), (64, 128)]
    layers = [m for i, o in blocks for m in (nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 10))
    return model, torch.randn(64, 3, 32, 32), torch.randint(10, (64,))


MODELS = {"MLP 784-1024-1024-10, b128": mlp, "CNN 32/64/128, b64": cnn}
RULES = {"backprop": None, "FA": lawful.FeedbackAlignment}
OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-4),
    "SGD momentum decay": lambda p: torch.optim.SGD(p, lr=1e-4, momentum=0.9, weight_decay=1e-4),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-6),
}
LEDGERS = {"plain": 0, "plain again": 0, "finite step": 10**9, "split_every=10": 10, "full split": 1}
"""Variant -> ``split_every``; 0 for no ledger."""


def training(model_name: str, rule: str, optimiser: str, split_every: int) -> Turn:
    torch.manual_seed(0)
    model, x, y = MODELS[model_name]()
    make = RULES[rule]
    if make is not None:
        lawful.attach(model, make())
    optimizer = OPTIMISERS[optimiser](model.parameters())
    if split_every:
        lawful.Ledger(model, optimizer, args=x[:2], split_every=split_every).__enter__()
    loss = nn.CrossEntropyLoss()

    def turn() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()

    return turn


def ratios(model_name: str, rule: str, optimiser: str, rounds: int) -> tuple[float, dict[str, float]]:
    """Milliseconds of a plain step, and each variant's median ratio to it."""
    turns = {name: training(model_name, rule, optimiser, every) for name, every in LEDGERS.items()}
    times: dict[str, list[float]] = {name: [] for name in turns}
    names = list(turns)
    for turn in turns.values():
        turn()
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            start = time.perf_counter()
            turns[name]()
            times[name].append(time.perf_counter() - start)
    base = times["plain"]
    found = {n: statistics.median(t / b for t, b in zip(ts, base, strict=True)) for n, ts in times.items()}
    return 1e3 * statistics.median(base) / STEPS, found


def peak_memory(rule: str, optimiser: str, split_every: int) -> float:
    """Peak resident memory, in MB, of a fresh process that makes a turn of the MLP's steps."""
    torch.set_num_threads(1)
    model = mlp()[0]
    lawful.Ledger(model, torch.optim.SGD(model.parameters()))  # what deriving laws imports and needs is not a step's
    del model
    training(next(iter(MODELS)), rule, optimiser, split_every)()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_table() -> None:
    weights = sum(p.numel() * p.element_size() for p in mlp()[0].parameters()) / 2**20
    print(f"Peak resident memory, {next(iter(MODELS))}, − plain, in MB (the weights: {weights:.1f} MB)\n")
    print("| rule | optimiser | plain again | full split |\n|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    for rule in RULES:
        for optimiser in OPTIMISERS:
            found = {}
            for name in ("plain", "plain again", "full split"):
                with context.Pool(1, maxtasksperchild=1) as pool:
                    calls = [(rule, optimiser, LEDGERS[name])] * 3
                    found[name] = statistics.median(pool.starmap(peak_memory, calls, chunksize=1))
            extra = " | ".join(f"{found[name] - found['plain']:+.1f}" for name in ("plain again", "full split"))
            print(f"| {rule} | {optimiser} | {extra} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="*", default=list(MODELS), metavar="NAME", help="models that start like this")
    parser.add_argument("--without-numba", action="store_true", help="as where it is not installed")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.without_numba:
        compiled.is_available = lambda: False
    by = f"numba {metadata.version('numba')}" if compiled.is_available() else "no numba"
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(
        f"torch {torch.__version__}, {by}, {options.threads} threads, {options.rounds} rounds, load averages {load}\n"
    )
    variants = [name for name in LEDGERS if name != "plain"]
    print(f"| model | rule | optimiser | plain step, ms | {' | '.join(variants)} |\n|{'---|' * (4 + len(variants))}")
    for model_name in MODELS:
        for rule in RULES if model_name.startswith(tuple(options.only)) else ():
            for optimiser in OPTIMISERS:
                base, found = ratios(model_name, rule, optimiser, options.rounds)
                cells = " | ".join(f"{found[name]:.3f}" for name in variants)
                print(f"| {model_name} | {rule} | {optimiser} | {base:.1f} | {cells} |", flush=True)
    print()
    if options.memory:
        memory_table()


if __name__ == "__main__":
    main()
