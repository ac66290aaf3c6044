"""Matrix laws of linear groups: W_iW_iᵀ + b_ib_iᵀ − (BᵀW + WᵀB), one symmetric matrix per group of channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lawful.affine.slices import Slices
from lawful.conservation.base import Law, Tensors
from lawful.conservation.neuron import sum_text
from lawful.conservation.potential import SQUARE, Potential


class GramTerm:
    """coefficient · M(W), the matrix with Ṁ = BᵀẆ + ẆᵀB over the lines of one parameter.

    With B = s·W + const (slope s ∈ {0, 1}) that is M = BᵀW + WᵀB − s WᵀW: WᵀW for backpropagation, BᵀW + WᵀB for
    feedback alignment, BᵀB up to a constant for Kolen–Pollack.

    Args:
        slices: the parameter's lines.
        potential: Ψ; ½W² for a producer.
        slope: s.
        coefficient: ±1.
        index: (groups, channels, lines per channel) which lines a channel owns.
    """

    def __init__(
        self, slices: Slices, potential: Potential, slope: int, coefficient: float, index: torch.Tensor
    ) -> None:
        self.slices, self.potential, self.slope = slices, potential, slope
        self.coefficient, self.index = coefficient, index

    def _rows(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.slices.lines(tensor).double()[self.index.to(tensor.device)].flatten(2)

    def value(self, theta: Tensors) -> torch.Tensor:
        """Coefficient · M(W), (groups, channels, channels)."""
        weight = theta[self.slices.parameter]
        rows, back = self._rows(weight), self._rows(self.potential.feedback(weight))
        cross = back @ rows.mT
        return self.coefficient * (cross + cross.mT - self.slope * (rows @ rows.mT))

    def rate(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """Coefficient · (BᵀV + VᵀB)."""
        back = self._rows(self.potential.feedback(theta[self.slices.parameter]))
        cross = back @ self._rows(v[self.slices.parameter]).mT
        return self.coefficient * (cross + cross.mT)

    def magnitude(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """|BᵀV| + |VᵀB|, with absolute values inside the products."""
        back = self._rows(self.potential.feedback(theta[self.slices.parameter])).abs()
        cross = back @ self._rows(v[self.slices.parameter]).abs().mT
        return cross + cross.mT

    def drift(self, theta: Tensors, delta: Tensors) -> torch.Tensor:
        """Coefficient · s · ΔᵀΔ."""
        rows = self._rows(delta[self.slices.parameter])
        return self.coefficient * self.slope * (rows @ rows.mT)

    @property
    def text(self) -> str:
        """The term in print, with its sign."""
        name = self.slices.text.replace("[j]", "").replace("[:, j]", "ᵀ")
        square, cross = f"{name} {name}ᵀ".replace("ᵀᵀ", ""), f"(BᵀW + WᵀB of {name.removesuffix('ᵀ')})"
        body = square if self.potential is SQUARE else cross if self.slope == 0 else f"M({name})"
        return f"{'−' if self.coefficient < 0 else '+'} {body}"


class MatrixLaw(Law):
    """A symmetric matrix per group; its components on and above the diagonal are the conserved numbers.

    The diagonal is twice the neuron law.
    """

    kind = "matrix"

    def __init__(self, name: str, terms: Sequence[GramTerm], source: str, channels: Sequence[Sequence[str]]) -> None:
        self.name, self.terms, self.source = name, tuple(terms), source
        self.parameters = tuple(dict.fromkeys(term.slices.parameter for term in terms))
        self.potentials = tuple(term.potential for term in terms)
        self.formula = sum_text([term.text for term in terms])
        size = len(channels[0])
        self._upper = torch.triu_indices(size, size)
        pairs = list(zip(*self._upper.tolist(), strict=True))
        self.names = [f"{name} · ({group[j]}, {group[l]})" for group in channels for j, l in pairs]

    def _components(self, matrices: list[torch.Tensor]) -> torch.Tensor:
        total = torch.stack(matrices).sum(0) if len(matrices) > 1 else matrices[0]
        return total[:, self._upper[0].to(total.device), self._upper[1].to(total.device)].reshape(-1)

    def value(self, theta: Tensors) -> torch.Tensor:
        """The upper triangles, one group after the other."""
        return self._components([term.value(theta) for term in self.terms])

    def rate(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """Upper triangles of Σ ±(BᵀV + VᵀB)."""
        return self._components([term.rate(theta, v) for term in self.terms])

    def drift(self, theta: Tensors, delta: Tensors) -> torch.Tensor:
        """Upper triangles of Σ ±s ΔᵀΔ."""
        return self._components([term.drift(theta, delta) for term in self.terms])

    def magnitude(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """Every product of the rate counted with its absolute value."""
        return self._components([term.magnitude(theta, v) for term in self.terms])
