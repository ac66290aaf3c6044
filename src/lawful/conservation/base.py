"""What a law is: a function of the parameters, its rate along a direction, and its exact drift over a step."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import torch
from torch import nn

from lawful.conservation.combination import Moves, Tensors
from lawful.conservation.potential import Potential

LINEAR: Final = ("shift", "bias", "range")
"""Kinds that are linear in the weights: their rate is a sum of gradients."""


class Law(abc.ABC):
    """A quantity q(θ) that learning leaves alone; vector-valued, one component per channel of a site.

    Attributes:
        name: where it lives, "fc1" or "block.fc1 + embed".
        kind: "neuron", "matrix", "scale", "shift", "bias" or "range".
        formula: q in printable form.
        source: who stated it.
        names: one name per component of :meth:`value`, in its flattened order.
        parameters: dotted names that it reads.
        potentials: of the weights that it reads.
        note: when it is not exactly conserved, in which limit it is ("" otherwise).
    """

    name: str
    kind: str
    formula: str
    source: str
    names: Sequence[str]
    parameters: tuple[str, ...]
    note: str = ""
    potentials: tuple[Potential, ...] = ()

    @abc.abstractmethod
    def value(self, theta: Tensors) -> torch.Tensor:
        """q(θ)."""

    def rate(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """dq/dt when θ moves with velocity v: ⟨∇q(θ), v⟩."""

        def q(*leaves: torch.Tensor) -> torch.Tensor:
            return self.value(dict(zip(self.parameters, leaves, strict=True)))

        primals = tuple(theta[p] for p in self.parameters)
        return torch.func.jvp(q, primals, tuple(v[p] for p in self.parameters))[1]

    def drift(self, theta: Tensors, delta: Tensors) -> torch.Tensor:
        """What a finite step adds: q(θ+Δ) − q(θ) − ⟨∇q(θ), Δ⟩. Laws override it by a form without cancellation."""
        moved = {p: theta[p] + delta[p] for p in self.parameters}
        return self.value(moved) - self.value(theta) - self.rate(theta, delta)

    def expand(self, theta: Moves, delta: Moves, along: Sequence[Moves]) -> torch.Tensor:
        """A step to second order: row 0 is the drift of Δ, then one row for the rate along each of ``along``.

        Laws that are sums over elements override it by one that never writes a whole step down.
        """
        weights = {p: theta[p].whole() for p in self.parameters}

        def written(v: Moves) -> dict[str, torch.Tensor]:
            return {p: v[p].whole() if p in v else torch.zeros_like(w) for p, w in weights.items()}

        rows = [self.drift(weights, written(delta)), *(self.rate(weights, written(v)) for v in along)]
        return torch.stack([row.reshape(-1).double() for row in rows])

    def magnitude(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """What a violation is relative to: the rate with every product in it counted by its absolute value."""
        return self.rate(theta, v).abs()

    def __repr__(self) -> str:
        return f"<{self.kind} law {self.name}: {self.formula} = const>"


class LayerLaw(Law):
    """Sum of a law over its channels: the seed's Theorem 5.1 is the sum of the neuron laws of a layer."""

    def __init__(self, law: Law) -> None:
        self.law = law
        self.name, self.kind, self.source, self.note = law.name, law.kind, law.source, law.note
        self.formula = f"Σ_j {law.formula}"
        self.names = (f"{law.name} · sum",)
        self.parameters, self.potentials = law.parameters, law.potentials

    def value(self, theta: Tensors) -> torch.Tensor:
        """Σ_j q_j, shape (1,)."""
        return self.law.value(theta).sum().reshape(1)

    def rate(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """Σ_j of the rates."""
        return self.law.rate(theta, v).sum().reshape(1)

    def drift(self, theta: Tensors, delta: Tensors) -> torch.Tensor:
        """Σ_j of the drifts."""
        return self.law.drift(theta, delta).sum().reshape(1)

    def expand(self, theta: Moves, delta: Moves, along: Sequence[Moves]) -> torch.Tensor:
        """Σ_j of the rows."""
        return self.law.expand(theta, delta, along).sum(1, keepdim=True)

    def magnitude(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """Σ_j of the magnitudes."""
        return self.law.magnitude(theta, v).sum().reshape(1)


class LawSet(Sequence[Law]):
    """The laws of a model.

    Attributes:
        reasons: weight -> why no law holds for its output channels.
        unknown: operations the derivation does not know, and where; laws through them are left out.
        classes: per tensor among the outputs the axis over which it is taken to go through a softmax; None for none.
    """

    def __init__(
        self,
        laws: Sequence[Law],
        reasons: Mapping[str, str],
        unknown: Sequence[str],
        classes: Sequence[int | None] = (),
    ) -> None:
        self._laws = tuple(laws)
        self.reasons = dict(reasons)
        self.unknown = tuple(unknown)
        self.classes = tuple(classes)

    def __getitem__(self, index: int) -> Law:  # type: ignore[override]
        return self._laws[index]

    def __len__(self) -> int:
        return len(self._laws)

    def __iter__(self) -> Iterator[Law]:
        return iter(self._laws)

    @property
    def names(self) -> tuple[str, ...]:
        """One name per conserved number, "block1.fc1 · neuron 12"."""
        return tuple(name for law in self for name in law.names)

    @property
    def layers(self) -> LawSet:
        """The neuron laws summed over the channels of each site."""
        return LawSet([LayerLaw(law) for law in self.of_kind("neuron")], self.reasons, self.unknown, self.classes)

    def of_kind(self, *kinds: str) -> LawSet:
        """The laws of these kinds."""
        return LawSet([law for law in self if law.kind in kinds], self.reasons, self.unknown, self.classes)

    def values(self, theta: Tensors | nn.Module) -> dict[str, torch.Tensor]:
        """``names`` -> the numbers conserved, at θ or at a module's parameters now."""
        return {
            name: q for law in self for name, q in zip(law.names, law.value(tensors(theta)).reshape(-1), strict=True)
        }

    def __repr__(self) -> str:
        rows = [(law.kind, law.name, str(len(law.names)), f"{law.formula} = const", law.note) for law in self]
        header = ("kind", "site", "laws", "conserved", "")
        width = [max(len(row[i]) for row in [header, *rows]) for i in range(3)]
        lines = [
            "  ".join([*(cell.ljust(width[i]) for i, cell in enumerate(row[:3])), row[3], row[4]]).rstrip()
            for row in [header, *rows]
        ]
        lines += [f"no law  {site}: {why}" for site, why in self.reasons.items()]
        lines += [f"unknown operation  {what}" for what in self.unknown]
        return "\n".join(lines)


def tensors(theta: Tensors | nn.Module) -> dict[str, torch.Tensor]:
    """Parameters by dotted name, detached."""
    items = theta.named_parameters(remove_duplicate=False) if isinstance(theta, nn.Module) else theta.items()
    return {name: tensor.detach() for name, tensor in items}
