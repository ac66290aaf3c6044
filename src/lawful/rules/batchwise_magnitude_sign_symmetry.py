"""Sign symmetry with fresh random magnitudes for every batch."""

from __future__ import annotations

from typing import ClassVar

import torch

from lawful.rules.base import Rule, draw, fan_in
from lawful.rules.scale import check_scale, scale_text
from lawful.rules.signs import signed
from lawful.rules.stream import advance, new_stream
from lawful.types import Array, State

_PIECE = 2**16
"""Elements that are drawn at a time."""


class BatchwiseMagnitudeSignSymmetry(Rule):
    """B = M(t) ⊙ sign(W) with random M(t) ≥ 0 drawn anew for each batch t (brSF).

    A batch ends with the optimizer step, where ``after_step`` redraws M in place; the forward passes in between
    (gradient accumulation, checkpointing's recomputation, measures) share one M. ``feedback`` is therefore a pure
    function of the weight and the state, which ``vmap`` and ``torch.compile`` take as it is, and M(t) is a
    function of (seed, parameter name, t) alone. The redrawing itself reads a counter and is not for tracing.

    No potential: M differs from batch to batch. As lr → 0 the law of E[M] = (√3/2)·scale holds, with drift ~ √lr.

    Args:
        seed: M(t) is a function of (seed, dotted parameter name, t).
        scale: root mean square of M's elements (default 1/√fan-in); M is uniform on [0, √3·scale].

    Raises:
        SettingError: a negative or non-finite ``scale``.

    References:
        Liao, Leibo & Poggio, *How Important Is Weight Symmetry in Backpropagation?*, AAAI 2016.
    """

    name: ClassVar[str] = "brsf"

    def __init__(self, *, seed: int = 0, scale: float | None = None) -> None:
        check_scale("BatchwiseMagnitudeSignSymmetry", scale)
        self.learns = True
        self.seed = seed
        self.scale = scale

    def init(self, weight: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw M(0), and the key of the stream that the later ones come from."""
        M = draw(weight, generator, init="uniform", scale=self.scale).abs()
        return {"M": M, **new_stream(weight, generator)}

    def feedback(self, weight: Array, state: State) -> Array:
        """This batch's M with the signs of W."""
        return signed(state["M"], weight)

    def potential(self, weight: Array, state: State) -> Array | None:
        """None: M differs from batch to batch."""
        return None

    def after_step(self, weight: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        """Draw the next batch's M, in 24 bits whatever the dtype: random numbers are most of what this rule costs."""
        std = fan_in(weight) ** -0.5 if self.scale is None else self.scale
        generator = advance(state)
        for rows in state["M"].split(max(1, _PIECE // fan_in(weight))):  # beside M, not a second one
            rows.copy_(torch.rand(rows.shape, generator=generator, dtype=torch.float32).mul_(3**0.5 * std))

    def __repr__(self) -> str:
        """The call that makes this rule."""
        return f"BatchwiseMagnitudeSignSymmetry(seed={self.seed}{scale_text(self.scale)})"
