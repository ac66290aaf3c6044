"""Norms that are given numbers which do not vary: what they pass on, forward and backward, is rounding over √ε."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode

from lawful.conservation.norm_calls import NORMS, form_of

_STILL: Final = 1e-10
"""A spread √v below this part of the numbers' size is rounding."""


class StillNorms(TorchFunctionMode):
    """Watches a forward pass; ``found`` names the centring norms (by torch's function) in which no row varies.

    Rows of zeros alone are not counted: units that happen to be off.

    Elsewhere a row x = μ has x̂ = (x − μ)/√ε: the rounding of x − μ, blown up.

    >>> with StillNorms() as still:
    ...     _ = torch.nn.BatchNorm1d(2)(torch.full((3, 2), 0.1))
    >>> still.found
    ['batch_norm']
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in NORMS:
            form, a = form_of(func.__name__, args, kwargs)
            own = a.get("training", form.kind != "batch_norm") and a.get("use_input_stats", True)
            if form.centred and own and _is_still(form.rows(a["input"].detach())):
                self.found.append(form.kind)
        return func(*args, **kwargs)


def _is_still(rows: torch.Tensor) -> bool:
    spread, size = rows.std(-1, correction=0), rows.square().mean(-1).sqrt()
    return bool(rows.shape[-1] > 1 and size.any() and (spread <= _STILL * size).all())
