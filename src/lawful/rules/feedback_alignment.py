"""Feedback alignment: errors travel back through fixed weights that the forward pass never sees."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar

import torch

from lawful.errors import SettingError
from lawful.rules.base import DISTRIBUTIONS, Rule, draw
from lawful.rules.stored_feedback import FixedFeedback

_INITS = (*DISTRIBUTIONS, "aligned")


class FeedbackAlignment(FixedFeedback):
    """B fixed, with potential Ψ(W) = ⟨B, W⟩: the seed's law ½‖W_i‖² − ⟨W_{i+1}, B_{i+1}⟩, neuron by neuron.

    Args:
        seed: B is a function of (seed, dotted parameter name).
        init: "normal", "uniform", "orthogonal", or "aligned" for B = scale · W(0).
        scale: standard deviation of B's elements (default 1/√fan-in); for "aligned" the factor (default 1).
        B: a given B instead: one tensor of the weight's shape, or a mapping from dotted parameter names to tensors.

    Raises:
        SettingError: unknown ``init``, a negative or non-finite ``scale``, a given B of the wrong shape or missing.

    References:
        Lillicrap, Cownden, Tweed & Akerman, *Random synaptic feedback weights support error backpropagation for
        deep learning*, Nature Communications 7, 2016. Robertson & Koyejo, arXiv 2306.01870, 2023, Theorem 5.1.
    """

    name: ClassVar[str] = "fa"

    def __init__(
        self,
        *,
        seed: int = 0,
        init: str = "normal",
        scale: float | None = None,
        B: torch.Tensor | Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        if init not in _INITS:
            raise SettingError(f"FeedbackAlignment: init must be one of {', '.join(_INITS)}; got {init!r}")
        if scale is not None and not 0 <= scale < float("inf"):
            raise SettingError(f"FeedbackAlignment: scale must be a finite number >= 0; got {scale!r}")
        self.seed = seed
        self.init_name = init
        self.scale = scale
        self.B = B

    def bind(self, parameter: str) -> Rule:
        """Pick this parameter's B when a mapping was given."""
        if not isinstance(self.B, Mapping):
            return self
        if parameter not in self.B:
            raise SettingError(f"FeedbackAlignment: no B was given for {parameter!r}; given: {', '.join(self.B)}")
        bound = copy.copy(self)  # a subclass stays one
        bound.B = self.B[parameter]
        return bound

    def init(self, weight: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw, copy or take B."""
        if isinstance(self.B, torch.Tensor):
            if self.B.shape != weight.shape:
                raise SettingError(
                    f"FeedbackAlignment: B must have the weight's shape {tuple(weight.shape)}; "
                    f"got {tuple(self.B.shape)}"
                )
            return {"B": self.B.detach().to(weight).clone()}
        if self.init_name == "aligned":
            return {"B": weight.detach() * (1.0 if self.scale is None else self.scale)}
        return {"B": draw(weight, generator, init=self.init_name, scale=self.scale)}

    def __repr__(self) -> str:
        """The call that makes this rule."""
        given = "" if self.B is None else ", B=…"
        scale = "" if self.scale is None else f", scale={self.scale}"
        return f"FeedbackAlignment(seed={self.seed}, init={self.init_name!r}{scale}{given})"
