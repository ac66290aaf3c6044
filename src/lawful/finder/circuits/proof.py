"""Symbolic proof of a law: let θ change along ∇h and follow the change up the network, B in the place of W.

∇h · F = −⟨e, change of the output⟩, so h is a law exactly when the output does not change (for softmax outputs: when
all that go through one softmax change alike). Everything is a symbol: weights, feedback, inputs, slopes, P with row
sums 1, r with r²(v + ε) = 1. Changes mostly cancel long before the output.

Where every unit of a node changes by a constant times itself (0 included), the node gets new symbols for its units: an
identity in them holds whatever they stand for. So expansions stay small; should that lose a relation, all is expanded.
A polynomial that moves at some random point is refused without an expansion.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lawful.finder.circuits.arithmetic import Value, objects
from lawful.finder.circuits.fields import System
from lawful.finder.circuits.nodes import Here, State
from lawful.finder.circuits.nullspace import rates_of
from lawful.finder.circuits.ring import Ring
from lawful.finder.polynomials import Polynomial


def is_law(system: System, h: Polynomial, *, numeric: bool) -> bool:
    """True when ∇h · F expands to zero.

    Args:
        system: the circuit and its rule.
        h: in the symbols of the system.
        numeric: B as given; otherwise the law holds for every B.
    """
    if np.any(rates_of(system, [h], 4, np.random.default_rng(0), numeric=numeric)):
        return False
    return any(_expands_to_zero(system, h, numeric=numeric, renaming=renaming) for renaming in (True, False))


def _expands_to_zero(system: System, h: Polynomial, *, numeric: bool, renaming: bool) -> bool:
    ring = Ring(system, numeric=numeric)
    s = State(ring.ar, ring.theta, ring.B, ring.slopes(h))
    values: list[Value] = []
    changes: list[Value] = []
    for number, node in enumerate(system.circuit.nodes):
        inputs = [values[p] for p in node.parents]
        here = Here(inputs, ring.data(number, inputs) if node.has_data else None)
        here.value = node.value(s, here)
        change = _simplified(ring, node.push(s, here, [changes[p] for p in node.parents]))
        factors = _multiples(ring, here.value, change) if renaming and not node.has_data else None
        if factors is not None:
            here.value = ring.fresh(number)
            change = None if change is None else here.value * objects(factors)
        values.append(here.value)
        changes.append(change)
    change, each = changes[-1], system.circuit.logits
    if change is None:
        return True
    softmaxes = [change[at : at + each] for at in range(0, len(change), each)]
    return system.softmax and all(ring.vanishes(f - last) for *others, last in softmaxes for f in others)


def _simplified(ring: Ring, change: Value) -> Value:
    """The change with zeros as zeros; None when nothing is left."""
    left = [] if change is None else [ring.zero if ring.vanishes(f) else f for f in change]
    return objects(left) if any(f != 0 for f in left) else None


def _multiples(ring: Ring, value: Any, change: Value) -> list[Any] | None:
    """The constants c with change = c ⊙ value, or None."""
    if change is None:
        return [ring.zero] * len(value)
    factors = []
    for a, b in zip(value, change, strict=True):
        c = ring.ratio(a, b)
        if c is None:
            return None
        factors.append(c)
    return factors
