"""Count and certify the laws of 100 random architectures, and of one network with about 5 000 parameters.

    python benchmarks/law_counts.py [--rule bp] [--large]
    python benchmarks/law_counts.py --table          the tables rule × architecture of docs/law-counts.md

50 linear networks (depth 2-4, widths 2-5) and 50 ReLU networks (widths 2-9, half of them with biases, at most 265
parameters), as in Marcotte, Gribonval & Peyré (2023), whose SageMath code took 34 min and 1 h 53 min on 64 threads.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from lawful.experiments.papers.lawcounts import (
    ARCHITECTURES,
    ATTENTION,
    CIRCUIT_RULES,
    NORMS,
    SHARING,
    circuit_rows,
    rows,
)
from lawful.finder.circuits.search import CircuitSearch
from lawful.finder.families import FAMILIES
from lawful.finder.search import LawSearch, find_laws


def architectures(seed: int = 0) -> list[tuple[str, tuple[int, ...], bool]]:
    rng = np.random.default_rng(seed)
    chosen: list[tuple[str, tuple[int, ...], bool]] = []
    while len(chosen) < 50:
        widths = tuple(int(n) for n in rng.integers(2, 6, rng.integers(3, 6)))
        chosen.append(("linear", widths, False))
    while len(chosen) < 100:
        widths, bias = tuple(int(n) for n in rng.integers(2, 10, rng.integers(3, 6))), len(chosen) % 2 == 1
        if sum((n + bias) * m for n, m in zip(widths, widths[1:], strict=False)) <= 265:
            chosen.append(("relu", widths, bias))
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", default="bp")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--large", action="store_true", help="also two networks with about 5 000 parameters")
    parser.add_argument("--table", action="store_true", help="print the tables of rules in Markdown")
    options = parser.parse_args()
    if options.table:
        print_table()
        for names in (SHARING, ATTENTION, NORMS):
            print_circuits(names)
        return
    totals: dict[str, list[float]] = {}
    begun = time.process_time()
    for activation, widths, bias in architectures(options.seed):
        started = time.perf_counter()
        found = find_laws(widths, rule=options.rule, activation=activation, bias=bias, seed=options.seed)
        seconds = time.perf_counter() - started
        row = totals.setdefault(activation, [0, 0, 0, 0.0, 0.0])
        row[0] += 1
        row[1] += found.certified
        row[2] = max(row[2], found.dimension)
        row[3] += seconds
        row[4] = max(row[4], seconds)
        if not found.certified:
            print("not certified:", found)
    print(f"{'activation':<12}{'networks':>9}{'certified':>10}{'largest D':>10}{'total s':>9}{'slowest s':>10}")
    for activation, (count, certified, largest, seconds, slowest) in totals.items():
        print(f"{activation:<12}{count:>9}{certified:>10}{largest:>10}{seconds:>9.2f}{slowest:>10.2f}")
    seconds, used = sum(row[3] for row in totals.values()), time.process_time() - begun
    print(f"all 100: {seconds:.2f} s ({used:.2f} s of CPU), peak memory {_memory():.2f} GB")
    if options.large:
        for activation, widths, bias in (("relu", (50, 50, 45, 3), True), ("linear", (50, 50, 45, 3), False)):
            started, begun = time.perf_counter(), time.process_time()
            found = find_laws(widths, rule=options.rule, activation=activation, bias=bias, seed=options.seed)
            seconds, used = time.perf_counter() - started, time.process_time() - begun
            print(f"D = {found.dimension}: {found}, {seconds:.1f} s ({used:.1f} s of CPU), {_memory():.2f} GB")


def print_table() -> None:
    names = ["-".join(map(str, widths)) for widths in ARCHITECTURES]
    print("| rule | activation | bias | " + " | ".join(names) + " |")
    print("|---|---|---|" + "---|" * len(names))
    line: list[str] = []
    for found in sorted(rows(1), key=_row_order):
        line.append(str(found.count) if found.certified else f"{found.count}–{found.bound}")
        if len(line) == len(names):
            bias = "yes" if found.architecture.biases[0] else "no"
            print(f"| {found.rule} | {found.architecture.activation} | {bias} | " + " | ".join(line) + " |")
            line = []


def print_circuits(names: tuple[str, ...]) -> None:
    found: dict[str, dict[str, CircuitSearch]] = {}
    for name, search in circuit_rows(names, 0):
        found.setdefault(name, {})[search.rule] = search
    rules = [rule for rule in CIRCUIT_RULES if any(rule in row for row in found.values())]
    print("\n| name | network | D | " + " | ".join(rules) + " |\n|---|---|---|" + "---|" * len(rules))
    for name, row in found.items():
        counts = [_count(row[rule]) if rule in row else "" for rule in rules]
        print(f"| {name} | {row['bp'].network} | {row['bp'].dimension} | " + " | ".join(counts) + " |")


def _count(found: CircuitSearch) -> str:
    return str(found.count) if found.certified else f"{found.count}–{found.bound}"


def _row_order(found: LawSearch) -> tuple[int, str, bool]:
    return list(FAMILIES).index(found.rule), found.architecture.activation, found.architecture.biases[0]


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
