"""The certificate of a circuit: network, rule, points, ranks and laws as plain data, with a digest of all of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lawful.finder.certificate import CIRCUIT_FORMAT, digest, findings
from lawful.finder.circuits.circuit import Circuit, Map
from lawful.finder.circuits.fields import System
from lawful.finder.circuits.nodes import Affine, Fixed, Input, InverseRoot, Mask, Node, Product, Softmax, Sum
from lawful.finder.families import family_of

if TYPE_CHECKING:
    from lawful.finder.circuits.search import CircuitSearch

KINDS: Final[dict[str, type[Node]]] = {
    kind.__name__: kind for kind in (Input, Affine, Fixed, Sum, Mask, Product, Softmax, InverseRoot)
}
"""Nodes by name."""


def certificate_of(search: CircuitSearch) -> dict[str, Any]:
    """The search as plain data; a law is a list of [coefficient, [symbol, …]], symbols numbered as in ``symbols``."""
    system = search.system
    content: dict[str, Any] = {
        "format": CIRCUIT_FORMAT,
        "circuit": circuit_data(system.circuit),
        "rule": search.rule,
        "feedback": [str(b) for b in system.exact],
        "softmax": system.softmax,
        "symbols": system.names,
        **findings(search),
    }
    return {**content, "sha256": digest(content)}


def system_of(content: Mapping[str, Any]) -> System:
    """The circuit and its rule, read back."""
    given = content["circuit"]
    maps = tuple(_map(data) for data in given["maps"])
    circuit = Circuit(given["name"], maps, tuple(_node(data) for data in given["nodes"]), given["classes"])
    exact = np.array([Fraction(b) for b in content["feedback"]], dtype=object)
    return System(circuit, family_of(content["rule"]), exact, bool(content["softmax"]))


def circuit_data(circuit: Circuit) -> dict[str, Any]:
    """Maps and nodes as plain data."""
    maps = [{"name": m.name, "weight": m.weight, "weight_at": m.weight_at.tolist(), "bias": m.bias,
             "bias_at": None if m.bias_at is None else m.bias_at.tolist()} for m in circuit.maps]  # fmt: skip
    nodes = []
    for node in circuit.nodes:
        data = {f.name: _plain(getattr(node, f.name)) for f in dataclasses.fields(node)}  # pyright: ignore[reportArgumentType]
        nodes.append({"kind": type(node).__name__, **data})
    return {"name": circuit.name, "maps": maps, "nodes": nodes, "classes": circuit.classes}


def _plain(value: Any) -> Any:
    match value:
        case np.ndarray():
            return value.tolist()
        case Fraction():
            return str(value)
        case tuple():
            return [str(v) if isinstance(v, Fraction) else int(v) for v in value]
        case _:
            return value


def _map(data: Mapping[str, Any]) -> Map:
    bias_at = None if data["bias_at"] is None else np.array(data["bias_at"], dtype=int)
    return Map(data["name"], data["weight"], np.array(data["weight_at"], dtype=int), data["bias"], bias_at)


def _node(data: Mapping[str, Any]) -> Node:
    fields = {name: value for name, value in data.items() if name != "kind"}
    widths = {"places": 2 + (data["kind"] in ("Affine", "Product")), "offsets": 2}
    for name, columns in widths.items():
        if name in fields:
            fields[name] = np.array(fields[name], dtype=int).reshape(-1, columns)
    if "row" in fields:
        fields["row"] = np.array(fields["row"], dtype=int)
    if "coefficients" in fields:
        fields["coefficients"] = tuple(Fraction(c) for c in fields["coefficients"])
    if "slope" in fields:
        fields["slope"] = Fraction(fields["slope"])
    for name in ("parents", "widths"):
        if name in fields:
            fields[name] = tuple(fields[name])
    return KINDS[data["kind"]](**fields)
