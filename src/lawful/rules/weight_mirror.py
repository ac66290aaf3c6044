"""Weight mirror: feedback learns the weight from the correlation of noise with the layer's reply to it."""

from __future__ import annotations

from typing import ClassVar

import torch

from lawful.errors import SettingError
from lawful.rules.base import draw
from lawful.rules.scale import check_scale, scale_text
from lawful.rules.stored_feedback import StoredFeedback
from lawful.rules.stream import advance, new_stream
from lawful.types import Array, State


class WeightMirror(StoredFeedback):
    """B ← (1 − η)B + η yᵀx/n with n rows of noise x ~ N(0, I) and the layer's linear reply y = xWᵀ.

    E[yᵀx] = nW, so B is a running mean of unbiased estimates of W made from the reply alone.

    Growth control: the source's B += η yᵀx grows without bound unless decay and rate are balanced by hand. Here the
    decay *is* the rate: the fixed point is W itself, and ‖B‖ follows ‖W‖. For fixed W,
    E[B(t)] − W = (1−η)ᵗ(B(0) − W), and the stationary variance of B[i,j] is η/(2−η) · (‖W[i,:]‖² + W[i,j]²)/n.

    A noise phase follows every optimizer step, or every ``every``-th. Convolutions are mirrored through their
    kernels as (out, in·kernel) matrices: noise patches, not noise images. B moves on its own, so there is no
    potential, and no law but the instantaneous identity.

    Args:
        seed: B(0) and all noise are functions of (seed, dotted parameter name, step).
        rate: η in (0, 1].
        samples: n, rows of noise in a phase.
        every: optimizer steps from one phase to the next.
        scale: standard deviation of B(0)'s elements (default 1/√fan-in).

    Raises:
        SettingError: ``rate`` outside (0, 1], ``samples`` or ``every`` below 1, a negative or non-finite ``scale``.

    References:
        Akrout, Wilson, Humphreys, Lillicrap & Tweed, *Deep Learning without Weight Transport*, NeurIPS 2019.
    """

    name: ClassVar[str] = "wm"

    def __init__(
        self, *, seed: int = 0, rate: float = 0.05, samples: int = 128, every: int = 1, scale: float | None = None
    ) -> None:
        check_scale("WeightMirror", scale)
        if not 0 < rate <= 1:
            raise SettingError(f"WeightMirror: rate must lie in (0, 1]; got {rate!r}")
        if samples < 1 or every < 1:
            raise SettingError(f"WeightMirror: samples and every must be >= 1; got {samples!r} and {every!r}")
        self.learns = True
        self.seed = seed
        self.rate = rate
        self.samples = samples
        self.every = every
        self.scale = scale

    def init(self, weight: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw B(0), and the key of the stream that the noise comes from."""
        return {"B": draw(weight, generator, scale=self.scale), **new_stream(weight, generator)}

    def potential(self, weight: Array, state: State) -> Array | None:
        """None: B moves on its own."""
        return None

    def after_step(self, weight: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        """One noise phase."""
        generator = advance(state)
        if int(state["step"]) % self.every:
            return
        whole = getattr(weight.detach(), "full_tensor", weight.detach)()  # fully_shard leaves a part here
        matrix = whole.flatten(1) if whole.ndim > 1 else whole[:, None]
        x = torch.randn(self.samples, matrix.shape[1], generator=generator, dtype=torch.float64).to(matrix)
        y = x @ matrix.t()
        state["B"].lerp_((y.t() @ x / self.samples).reshape(weight.shape), self.rate)

    def __repr__(self) -> str:
        """The call that makes this rule."""
        options = f"rate={self.rate!r}, samples={self.samples}, every={self.every}"
        return f"WeightMirror(seed={self.seed}, {options}{scale_text(self.scale)})"
