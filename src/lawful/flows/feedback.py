"""The feedback weights of a NumPy network: a rule's state per layer, drawn exactly as attachment draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike

from lawful.errors import SettingError
from lawful.flows.activations import Floats
from lawful.flows.network import Network
from lawful.rules.base import Rule, generator_for

States = tuple[dict[str, Floats], ...]
"""What the rule stores for W_1 … W_L, as NumPy arrays: ``{"B": …}`` a layer for FA, ``{}`` for backpropagation.

The first layer sends no error on; its entry is ``{}``."""


def parameter_names(depth: int) -> tuple[str, ...]:
    """The weight names of ``nn.Sequential(Linear, activation, Linear, …)``: "0.weight", "2.weight", …."""
    return tuple(f"{2 * i}.weight" for i in range(depth))


def numpy_states(rule: Rule, network: Network, names: Sequence[str] | None = None) -> States:
    """Draw the rule's state of every layer but the first, which sends no error on, and convert it to NumPy.

    B is a function of (rule.seed, parameter name): with the default names it is bitwise the B that
    ``lawful.attach`` gives the float64 ``nn.Sequential(Linear, activation, Linear, …)`` of the same weights.

    Args:
        rule: any feedback rule.
        network: its weights are what ``rule.init`` sees (that matters for ``init="aligned"``).
        names: dotted weight names, one a layer.
    """
    chosen = parameter_names(network.depth) if names is None else tuple(names)
    states: list[dict[str, Floats]] = [{}]
    for name, weight in list(zip(chosen, network.weights, strict=True))[1:]:
        drawn = rule.bind(name).init(torch.from_numpy(weight.copy()), generator_for(rule.seed, name))
        states.append({key: value.numpy().astype(np.float64) for key, value in drawn.items()})
    return tuple(states)


def given_feedback(network: Network, B: Sequence[ArrayLike | None]) -> States:
    """States ``{"B": B_i}`` from given feedback weights, each of W_i's shape; B_1 is never used (None will do).

    Raises:
        SettingError: the wrong number or shape of B's.
    """
    if len(B) != network.depth:
        raise SettingError(
            f"expected {network.depth} feedback weights, one a layer (the first may be None); got {len(B)}"
        )
    states: list[dict[str, Floats]] = [{}]
    for i in range(1, network.depth):
        value, weight = np.array(B[i], dtype=np.float64), network.weights[i]
        if value.shape != weight.shape:
            raise SettingError(f"B_{i + 1} must have the shape {weight.shape} of W_{i + 1}; got {value.shape}")
        states.append({"B": value})
    return tuple(states)


def check_states(network: Network, states: Sequence[Mapping[str, Floats]]) -> None:
    """Refuse states that do not have one entry a layer.

    Raises:
        SettingError: wrong number of states.
    """
    if len(states) != network.depth:
        raise SettingError(f"expected {network.depth} rule states, one a layer; got {len(states)}")
