"""The cases a proof must go through: one with every mask a symbol, or every activation pattern that is realised."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import TypeAlias

import numpy as np

from lawful.errors import SettingError
from lawful.finder.fields import System, patterns_at, split
from lawful.finder.proof import Context

MAX_PATTERNS = 4096

Pattern: TypeAlias = tuple[tuple[Fraction, ...], ...]


def steady_units(system: System) -> list[list[int | None]]:
    """Per hidden layer, which units are off (0) or on (1) all over the orthant whose signs B carries.

    Without a bias a ReLU unit whose inputs all push down is off; one whose inputs all push up acts as the identity
    (where it is not on, its inputs are off and it carries nothing). Other units vary (None).
    """
    arch = system.arch
    local = system.family.source == "sign" and arch.sigma.slopes is not None and arch.sigma.slopes[0] == 0
    units: list[list[int | None]] = [[None] * n for n in arch.widths[1:-1]]
    for i in range(1, arch.depth - 1) if local else ():
        if arch.biases[i]:
            continue
        for j, row in enumerate(system.exact[i]):
            pushes = [x for x, below in zip(row, units[i - 1], strict=True) if below != 0]
            if all(x < 0 for x in pushes):
                units[i][j] = 0
            elif all(x > 0 for x in pushes):
                units[i][j] = 1
    return units


def steady_context(system: System) -> Context | None:
    """The case of a proof in which steady units are known and all other masks are symbols; None when none is steady."""
    units = steady_units(system)
    if not any(state is not None for layer in units for state in layer):
        return None
    return Context(masks=tuple(tuple(None if s is None else Fraction(s) for s in layer) for layer in units))


def contexts_of(system: System, point: list[np.ndarray]) -> tuple[Context, ...]:
    """The cases for laws that are local to the orthant or the activation region of ``point``.

    Raises:
        SettingError: more than 4096 activation patterns.
    """
    if system.inputs is not None:
        patterns = patterns_at(system, point, system.inputs)
        return tuple(Context(_pattern(system, patterns, row), tuple(x)) for row, x in enumerate(system.inputs))
    if system.family.orthant and system.arch.sigma.slopes is not None:
        return tuple(Context(masks=pattern) for pattern in realised_patterns(system, point))
    return (Context(),)


def _pattern(system: System, patterns: list[np.ndarray], row: int) -> Pattern | None:
    slopes = system.arch.sigma.slopes
    return None if slopes is None else tuple(tuple(slopes[int(on)] for on in layer[row]) for layer in patterns)


def realised_patterns(system: System, point: list[np.ndarray]) -> list[Pattern]:
    """Every activation pattern that some θ in the orthant of ``point`` shows for some input.

    Without a bias, a unit whose inputs all push the same way has one state; all other units are free.
    """
    arch = system.arch
    slopes = arch.sigma.slopes
    if slopes is None:
        return []
    weights, _, _ = split(system, point)
    patterns: list[Pattern] = [()]
    for i, n in enumerate(arch.widths[1:-1]):
        longer = []
        for pattern in patterns:
            choices = []
            for j in range(n):
                if i == 0 or arch.biases[i]:
                    choices.append(slopes)
                    continue
                signs = np.array([1 if s == slopes[1] else -int(slopes[0] != 0) for s in pattern[-1]])
                pushes = set((signs * np.sign(weights[i][j])).astype(int)) - {0}
                choices.append(slopes if len(pushes) == 2 else ((slopes[1],) if 1 in pushes else (slopes[0],)))
            longer += [(*pattern, masks) for masks in product(*choices)]
        if len(longer) > MAX_PATTERNS:
            raise SettingError(
                f"find_laws: laws local to an orthant are proved pattern by pattern, at most {MAX_PATTERNS}; this "
                "network has more. Up to 12 hidden neurons would work; with biases in the hidden layers any number"
            )
        patterns = longer
    return patterns
