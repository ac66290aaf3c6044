"""Bias laws: b_i − B_{i+1}ᵀ b_{i+1} is constant where layers follow each other with no activation in between.

The error summed over examples and positions, S_j = Σ δ_j = −ḃ_j, comes back from a linear layer as
S_i = B_{i+1}ᵀ S_{i+1}, from a sum as it is, and from attention too (its rows sum to one). Direct rules: S_i = D_iᵀ S_L.
So for a stream with several readers b − Σ_c B_cᵀ b_c is constant; a reader without bias passes on what its own readers
send.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lawful.affine.slices import Slices
from lawful.conservation.balance import Ids
from lawful.conservation.base import Law, Tensors
from lawful.conservation.error_maps import FeedbackOf, Hop, Reads, joined
from lawful.conservation.trace import Trace

_SOURCE = "error sums of linear layers; Robertson & Koyejo 2023 for the setting"


@dataclass(frozen=True)
class Link:
    """S_j = Σ_(j, column) (Bᵀ S)_column: which columns of a layer read which channel.

    Args:
        channel: (pairs,) channel j.
        column: (pairs,) an input of the layer.
        size: number of channels.
        hop: the layer.
    """

    channel: torch.Tensor
    column: torch.Tensor
    size: int
    hop: Hop

    def back(self, theta: Tensors, sums: torch.Tensor, *, absolute: bool = False) -> torch.Tensor:
        """The layer's output sums as its input channels' sums."""
        lines = self.hop.lines(theta).to(sums)
        columns = (lines.abs() if absolute else lines) @ sums
        channel, column = self.channel.to(sums.device), self.column.to(sums.device)
        return sums.new_zeros(self.size).index_add(0, channel, columns[column])


Chain = tuple[tuple[Link, ...], Slices]
"""Links in forward order, and the bias at their end."""


class BiasLaw(Law):
    """b − Σ_c B_cᵀ b_c of one writer, one number per channel; B is read live.

    Args:
        own: b.
        chains: how the readers' biases come back.
    """

    kind = "bias"
    source = _SOURCE

    def __init__(self, own: Slices, chains: Sequence[Chain]) -> None:
        self.own, self.chains = own, tuple(chains)
        self.name = own.site
        hops = [link.hop for links, _ in chains for link in links]
        read = [hop.parameter for hop in hops if hop.parameter is not None]
        self.parameters = tuple(dict.fromkeys([own.parameter, *(bias.parameter for _, bias in chains), *read]))
        self.potentials = tuple(psi for hop in hops for psi in hop.potentials)
        terms = ["".join(f"{link.hop.text}ᵀ " for link in links) + _whole(bias) for links, bias in chains]
        self.formula = " − ".join([_whole(own), *terms])
        self.names = [f"{self.name} · bias {j}" for j in range(own.count)]

    def _of(self, theta: Tensors, biases: Tensors, sign: int) -> torch.Tensor:
        total = self.own.lines(biases[self.own.parameter]).reshape(-1)
        for links, bias in self.chains:
            sums = bias.lines(biases[bias.parameter]).reshape(-1)
            for link in reversed(links):
                sums = link.back(theta, sums, absolute=sign > 0)
            total = total + sign * sums
        return total

    def value(self, theta: Tensors) -> torch.Tensor:
        """The biases less what their readers' biases send back, (channels,)."""
        return self._of(theta, theta, -1)

    def rate(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """The same of the velocity."""
        return self._of(theta, v, -1)

    def drift(self, theta: Tensors, delta: Tensors) -> torch.Tensor:
        """Zero: the law is linear, B constant."""
        return torch.zeros_like(self.own.lines(delta[self.own.parameter]).reshape(-1))

    def magnitude(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """Every product counted with its absolute value."""
        biases = {name: v[name].abs() for name in self.parameters if name in v}
        return self._of(theta, biases, 1)


def _whole(bias: Slices) -> str:
    return bias.text.removesuffix("[j]")


def bias_laws(trace: Trace, feedback: FeedbackOf) -> Iterator[BiasLaw]:
    """The bias law of every writer whose error sums come back from other biases alone."""
    sums = _Sums(trace, feedback)
    for amap in trace.writers:
        ids = feedback.once(amap)
        if amap.bias is not None and ids is not None:
            chains = sums.chains(ids)
            if chains:
                yield BiasLaw(amap.bias, chains)


_HARMLESS = frozenset({"an input that is no channel is added"})
"""Spoils E, not the error: what is added sends nothing back."""
_NOWHERE, _LAYER = -1, -2


class _Sums:
    """Follows S from a writer to the biases of its readers."""

    def __init__(self, trace: Trace, feedback: FeedbackOf) -> None:
        self._feedback, self._reads, self._readers = feedback, Reads(trace), trace.alone
        size = trace.balance.size
        self._layers = [amap for amap, uses in self._readers.items() if len(uses) == 1]
        self._fate = np.full(size, _NOWHERE)  # of an amount: the channel it is the error of, or _LAYER − its number
        for into, onward in trace.carries:
            self._fate[into] = onward
        for number, amap in enumerate(self._layers):
            self._fate[self._readers[amap][0][1]] = _LAYER - number
        self._spoiled = np.zeros(size, dtype=bool)
        self._spoiled[[i for i, why in trace.balance.reasons.items() if why - _HARMLESS]] = True
        self._columns: Mapping[int, tuple[Ids, Ids]] = {}
        self._biases = {
            ids.tobytes(): amap.bias
            for amap in trace.writers
            if (ids := feedback.once(amap)) is not None and amap.bias is not None
        }

    def chains(self, ids: Ids) -> list[Chain] | None:
        """Where the error sums of some channels come from; None where that is not known."""
        arrivals = self._arrivals(ids)
        if arrivals is None:
            return None
        found: list[Chain] = []
        for number, (channel, amounts) in arrivals.items():
            onward = self._through(self._layers[number], len(ids), channel, amounts)
            if onward is None:
                return None
            found += onward
        return found

    def _arrivals(self, ids: Ids) -> dict[int, tuple[Ids, Ids]] | None:
        """Layer number -> (channel, amount) pairs: which channel it reads, through sums and mixtures."""
        origin, node = np.arange(len(ids)), ids
        pairs: list[tuple[Ids, Ids]] = []
        while len(node):
            if self._spoiled[node].any():
                return None
            which, into = self._reads.of(node)
            fate = self._fate[into]
            if (fate == _NOWHERE).any():
                return None
            layer = fate <= _LAYER
            pairs.append((origin[which[layer]], into[layer]))
            origin, node = origin[which[~layer]], fate[~layer]
        channel, amounts = (np.concatenate(column) for column in zip(*pairs, strict=True))
        number = _LAYER - self._fate[amounts]
        return {n: (channel[number == n], amounts[number == n]) for n in np.unique(number).tolist()}

    def _through(self, reads: object, size: int, channel: Ids, amounts: Ids) -> list[Chain] | None:
        """The chains behind one layer, by the first of its hops that leads to biases."""
        line, all_amounts = self._readers[reads][0]  # type: ignore[index]
        columns = np.argsort(line, kind="stable")
        which, column = joined(line[columns], columns, amounts - all_amounts[0])
        for hop in self._feedback.hops(reads):  # type: ignore[arg-type]
            link = Link(torch.from_numpy(channel[which]), torch.from_numpy(column), size, hop)
            bias = self._biases.get(hop.onward.tobytes())
            if bias is not None:
                return [((link,), bias)]
            onward = self.chains(hop.onward)
            if onward is not None:
                return [((link, *links), bias) for links, bias in onward]
        return None
