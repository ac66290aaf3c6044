"""What the autograd graph of one forward pass says about a direct rule: who teaches each parameter, and what leaks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Segment:
    """The part of a model between two taps: it learns from the error at its root, by backpropagation inside it.

    Args:
        name: the tap, or the output module.
        root: the tensor that receives the error.
        inputs: what the tapped block was given.
    """

    name: str
    root: torch.Tensor
    inputs: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True)
class Lesson:
    """What one parameter learns from: the segments whose error reaches it, and the taps that errors leak around."""

    teachers: tuple[str, ...]
    leaks: tuple[str, ...]


@dataclass(frozen=True)
class Audit:
    """What one graph says.

    Args:
        lessons: dotted parameter name -> its lesson; empty lessons for parameters that are not leaves of the graph.
        leaks: taps that errors leak around to some parameter, whether or not it has a name (a sharded one has none).
    """

    lessons: Mapping[str, Lesson]
    leaks: tuple[str, ...]


def audit(model: nn.Module, segments: Sequence[Segment]) -> Audit:
    """Who teaches each parameter, and which taps leak.

    A path around the block of segment i is seen as follows: the block's output is detached, so a later root whose
    graph still contains an operation that feeds the block's input must reach it another way, a residual connection
    say; every parameter behind that operation then receives backpropagated error too.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    teachers: dict[str, list[str]] = {name: [] for name in names.values()}
    leaks: dict[str, list[str]] = {name: [] for name in names.values()}
    leaking: list[str] = []
    feeding = [ancestors(_starts(segment.inputs)) for segment in segments]
    for j, segment in enumerate(segments):
        reached = ancestors(_starts([segment.root]))
        for name in _parameters(reached, names):
            teachers[name].append(segment.name)
        for i in range(j):
            around = {node for node in reached & feeding[i] if not hasattr(node, "variable")}
            behind = ancestors(around)
            for name in _parameters(behind, names):
                leaks[name].append(segments[i].name)
            if any(isinstance(getattr(node, "variable", None), nn.Parameter) for node in behind):
                leaking.append(segments[i].name)
    lessons = {name: Lesson(_unique(teachers[name]), _unique(leaks[name])) for name in teachers}
    return Audit(lessons, _unique(leaking))


def _starts(tensors: Iterable[torch.Tensor]) -> set[Any]:
    return {torch.autograd.graph.get_gradient_edge(t).node for t in tensors if t.requires_grad}


def ancestors(starts: Iterable[Any]) -> set[Any]:
    """Every node from which the starts were computed, themselves included."""
    seen, stack = set(starts), list(starts)
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                stack.append(node)
    return seen


def _parameters(nodes: set[Any], names: Mapping[int, str]) -> list[str]:
    leaves = {id(node.variable) for node in nodes if hasattr(node, "variable")}
    return [name for key, name in names.items() if key in leaves]


def _unique(names: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
