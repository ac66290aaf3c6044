"""Symbolic proof of a law: let θ change along ∇h and follow the change up the network, B in the place of W.

∇h · F = −⟨e, change of the output⟩, so h is a law exactly when the output does not change (for softmax outputs: when all
outputs change alike). Everything is a symbol: weights, feedback, inputs, slopes, P with row sums 1, r with
r²(v + ε) = 1. What lies below the first weight that h mentions may be symbols of its own: an identity in them holds
whatever they stand for. Changes mostly cancel long before the output.
"""

from __future__ import annotations

from typing import Any

from lawful.finder.circuits.arithmetic import Value, objects
from lawful.finder.circuits.circuit import tangent
from lawful.finder.circuits.fields import System
from lawful.finder.circuits.nodes import State
from lawful.finder.circuits.ring import Ring, mentioned
from lawful.finder.polynomials import Polynomial


def is_law(system: System, h: Polynomial, *, numeric: bool) -> bool:
    """True when ∇h · F expands to zero.

    Args:
        system: the circuit and its rule.
        h: in the symbols of the system.
        numeric: B as given; otherwise the law holds for every B.
    """
    depends = system.circuit.depends(mentioned(system.circuit, h))
    below = [number for number, changing in enumerate(depends) if not changing]
    return _expands_to_zero(system, h, depends, below, numeric) or (
        _expands_to_zero(system, h, depends, [], numeric)
    )


def _expands_to_zero(system: System, h: Polynomial, depends: list[bool], opaque: list[int], numeric: bool) -> bool:
    ring = Ring(system, numeric=numeric, opaque=opaque)
    s = State(ring.ar, ring.theta, ring.B, ring.slopes(h))
    visited = ring.visited(s)

    def simplified(change: Value) -> Value:
        left = [0 if ring.vanishes(f) else f for f in change]
        return None if not any(f != 0 for f in left) else objects(left)

    change = tangent(system.circuit, s, visited, depends, simplified)
    return change is None or (system.softmax and _all_alike(ring, change))


def _all_alike(ring: Ring, change: Any) -> bool:
    return all(ring.vanishes(f - change[-1]) for f in change[:-1])
