"""What a direct rule is: a signal for a block, made from the output error in one jump."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import ClassVar

import torch

from lawful.errors import SettingError
from lawful.rules.base import draw
from lawful.rules.scale import check_scale, scale_text
from lawful.types import Array, State


class DirectRule(abc.ABC):
    """A rule that teaches block i from the output error e = ∂loss/∂logits: its output receives ``signal(e, state)``.

    Immutable values like :class:`lawful.rules.base.Rule`; ``signal`` is written once for every array namespace.

    Args:
        seed: D is a function of (seed, dotted name of the tapped block); see :meth:`stream`.
        taps: names or patterns of the blocks to teach; None leaves the choice to the attachment.
        output: name of the module whose output is the logits; None for the last affine one.
        scale: standard deviation of D's elements, by default 1/√out, out the width of the block.

    Raises:
        SettingError: a negative or non-finite ``scale``; ``taps`` given as one string.
    """

    name: ClassVar[str]
    """The registry's name of the rule, as the command line spells it."""

    def __init__(
        self, *, seed: int = 0, taps: Sequence[str] | None = None, output: str | None = None, scale: float | None = None
    ) -> None:
        check_scale(type(self).__name__, scale)
        if isinstance(taps, str):
            raise SettingError(f"{type(self).__name__}: taps must be a sequence of names; got the string {taps!r}")
        self.seed = seed
        self.taps = None if taps is None else tuple(taps)
        self.output = output
        self.scale = scale

    def init(self, template: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw D: the shape (outputs, out), dtype and device of ``template``, whose values are not read."""
        return {"D": draw(template, generator, scale=self.scale)}

    @abc.abstractmethod
    def signal(self, error: Array, state: State) -> Array:
        """The error handed to a block: (n, outputs) to (n, out)."""

    def stream(self, tap: str) -> str:
        """The name of the random stream that a tap's D comes from: its own."""
        return tap

    def project(self, weight: torch.Tensor) -> None:  # noqa: B027 - optional
        """Project ``weight``, in place, onto the rule's admissible set, at attachment and after optimizer steps."""

    def __deepcopy__(self, memo: dict[int, object]) -> DirectRule:
        """A rule is an immutable value: copies of a model share it."""
        return self

    def __repr__(self) -> str:
        """The call that makes this rule."""
        options = f"seed={self.seed}, taps={self.taps!r}, output={self.output!r}"
        return f"{type(self).__name__}({options}{scale_text(self.scale)})"
