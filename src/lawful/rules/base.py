"""What a learning rule is: the weights that errors travel back through, and the potential they descend from."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Callable
from typing import ClassVar, Final

import torch

from lawful.types import Array, State

Adjoint = Callable[[Array, Array], Array]
"""``adjoint(delta, B)``: the transposed linear map of a layer, with B where the weight stands."""


def matmul_adjoint(delta: Array, B: Array) -> Array:
    """δB, the adjoint of ``a Wᵀ`` with B for W: (…, out) and (out, in) to (…, in)."""
    return delta @ B


class Rule(abc.ABC):
    """A feedback rule: δ_{i-1} = (δ_i B_i) ⊙ σ'(h_{i-1}) with B_i = feedback(W_i, state), of the shape of W_i.

    Rules are immutable values. ``feedback`` and ``potential`` are written once for every array namespace
    (:func:`lawful.types.namespace`), so the backward pass, the alignment measures, the laws, the flows and the
    finder all evaluate the same text.

    The potential Ψ, where there is one, is a sum over the elements of W with B = ∇Ψ(W); every law of the rule
    follows from it: q_j = ½‖W_i[j,:]‖² + ½b_i[j]² − k Ψ_j(W_{i+1}) is constant along the flow.
    """

    name: ClassVar[str]
    """The registry's name of the rule, as the command line spells it."""

    learns: bool = False
    """True when ``after_step`` changes the state: training then needs ``attachment.follow(optimizer)``."""

    seed: int = 0

    @abc.abstractmethod
    def init(self, weight: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The state of one weight at attachment; random tensors come from ``generator`` alone (see :func:`draw`)."""

    @abc.abstractmethod
    def feedback(self, weight: Array, state: State) -> Array:
        """B, of the shape of ``weight``."""

    @abc.abstractmethod
    def potential(self, weight: Array, state: State) -> Array | None:
        """Ψ per element of ``weight`` with B = ∇Ψ(W), or None when the rule has no potential."""

    def whole_potential(self, weight: Array, state: State) -> Array | None:
        """Ψ of the whole weight, shared out over its elements, where Ψ is no sum over elements; None for other rules.

        Only the sum over all neurons in front of such a weight is constant.
        """
        return None

    def transport(self, delta: Array, B: Array, adjoint: Adjoint = matmul_adjoint) -> Array:
        """The error sent to a layer's input: the layer's adjoint with B in the weight's place."""
        return adjoint(delta, B)

    def after_step(self, weight: torch.Tensor, state: dict[str, torch.Tensor]) -> None:  # noqa: B027 - optional
        """Move the state, in place, after an optimizer step; rules whose feedback learns override this."""

    def project(self, weight: torch.Tensor) -> None:  # noqa: B027 - optional
        """Project ``weight``, in place, onto the rule's admissible set after an optimizer step."""

    def bind(self, parameter: str) -> Rule:
        """The rule for the parameter of this dotted name; rules given one B per name override this."""
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Rule:
        """A rule is an immutable value: copies of a model share it."""
        return self


def generator_for(seed: int, parameter: str) -> torch.Generator:
    """The random stream of one parameter: a function of (seed, dotted name) only, so every process draws the same B."""
    digest = hashlib.sha256(f"{seed}/{parameter}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def fan_in(weight: torch.Tensor) -> int:
    """Number of inputs that one output channel sums: ``weight[0].numel()``.

    Where the first axis is that of the inputs (transposed convolutions, Hugging Face's Conv1D) this is the fan-out.
    """
    return max(1, weight[0].numel()) if weight.ndim > 1 else 1


def _normal(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _uniform(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    return (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) * 3**0.5


def _orthogonal(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    flat = torch.empty(shape[0], shape[1:].numel(), dtype=torch.float64)
    torch.nn.init.orthogonal_(flat, generator=generator)
    return flat.mul_(max(flat.shape) ** 0.5).reshape(shape)


DISTRIBUTIONS: Final[dict[str, Callable[[torch.Size, torch.Generator], torch.Tensor]]] = {
    "normal": _normal,
    "uniform": _uniform,
    "orthogonal": _orthogonal,
}
"""Draws with elements of root mean square 1, in float64 on the CPU."""


def draw(
    weight: torch.Tensor, generator: torch.Generator, *, init: str = "normal", scale: float | None = None
) -> torch.Tensor:
    """A random tensor like ``weight`` whose elements have standard deviation ``scale`` (default 1/√fan-in).

    Drawn in float64 on the CPU and then cast, so that every dtype and device gets the same numbers.
    """
    std = fan_in(weight) ** -0.5 if scale is None else scale
    return (std * DISTRIBUTIONS[init](weight.shape, generator)).to(weight)
