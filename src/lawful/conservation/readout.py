"""The virtual readout of a tapped block: what a direct rule's error balance holds where a layer's weight would stand.

The signal s = signal(e) that arrives at a block's output a ends the balance of every homogeneous site behind it:

    ⟨Ẇ_i[j], W_i[j]⟩ + b_j ḃ_j = −k Σ_n s_j a_j = k ⟨V̇[:, j], D[:, j]⟩,        V̇ = −eᵀa where s = e D.

V is a linear readout that nobody trains, so ½‖W_i[j]‖² + ½b_j² − k⟨V[:, j], D[:, j]⟩ is no law in the weights alone;
but the identity tests the backward pass of any direct rule, s and a being known in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lawful.affine.slices import Slices
from lawful.attachment.base import attachment_or_none
from lawful.attachment.direct import DirectAttachment
from lawful.conservation.base import Law, Tensors
from lawful.conservation.neuron import NeuronLaw
from lawful.conservation.potential import Potential
from lawful.conservation.taps import Cut, watched
from lawful.errors import NoLawError
from lawful.rules.direct_base import DirectRule
from lawful.rules.feedback_alignment import FeedbackAlignment

_NO_VALUE = "a virtual readout is no weight of the model: only its rate is known, from signal and activation"


def direct_attachment(model: nn.Module) -> DirectAttachment | None:
    """The direct rule on a model, if that is what it carries."""
    attachment = attachment_or_none(model)
    return attachment if isinstance(attachment, DirectAttachment) else None


def readout_name(key: str) -> str:
    """What a tap's virtual readout is called where parameters have dotted names: no parameter is called so."""
    return f"{key} (readout)"


class Readout(Potential):
    """Stands where the potential of the weight that reads a block would stand.

    Args:
        key: the tap.
        rule: the direct rule on it.
    """

    def __init__(self, key: str, rule: DirectRule) -> None:
        super().__init__(FeedbackAlignment())
        self.key, self.direct = key, rule

    def exists(self, weight: torch.Tensor) -> bool:
        """No: the readout is virtual."""
        return False

    def slope(self, weight: torch.Tensor) -> int:
        """D does not depend on V."""
        return 0

    def lack(self, name: str) -> str:
        """Why there is no law."""
        what = f"{type(self.direct).__name__} teaches it at tap {self.key!r}"
        return f"{what}: it balances a virtual readout V, V̇ = −eᵀa, and no weight of the model (lawcheck tests it)"


class ReadoutTerm:
    """−k Σ_n s_j a_j over the features that one channel owns; a direction v holds (s, a), stacked (2, n, features).

    Args:
        slices: the features, as lines of the virtual V (outputs, features).
        potential: its :class:`Readout`.
        coefficient: −k.
        channel: (features,) which channel a feature belongs to, −1 for none.
        size: number of channels.
    """

    def __init__(
        self, slices: Slices, potential: Readout, coefficient: float, channel: torch.Tensor, size: int
    ) -> None:
        self.slices, self.potential, self.coefficient = slices, potential, coefficient
        self.channel, self.size = channel, size

    def rate(self, v: Tensors) -> torch.Tensor:
        """−k Σ_n s_j a_j."""
        signal, activation = v[self.slices.parameter]
        return self.coefficient * self._by_channel(signal * activation)

    def magnitude(self, v: Tensors) -> torch.Tensor:
        """K Σ_n |s_j| |a_j|."""
        signal, activation = v[self.slices.parameter]
        return abs(self.coefficient) * self._by_channel((signal * activation).abs())

    def _by_channel(self, products: torch.Tensor) -> torch.Tensor:
        mine = self.channel >= 0
        return products.new_zeros(self.size).index_add(0, self.channel[mine], products.sum(0)[mine])

    @property
    def text(self) -> str:
        """The term in print, with its sign."""
        return _text(self.slices, self.coefficient, "⟨V[:, j], D[:, j]⟩")


class ReadoutLaw(Law):
    """The identity of a site behind taps: the terms of the model's own weights, ``real``, and the readouts'.

    Args:
        real: a law of those weights alone, which it would be if nothing were tapped.
        readouts: what balances them.
    """

    kind = "neuron"

    def __init__(self, real: NeuronLaw, readouts: Sequence[ReadoutTerm]) -> None:
        self._real, self._readouts = real, tuple(readouts)
        self.name, self.source, self.names, self.note = real.name, real.source, real.names, real.note
        self.parameters = (*real.parameters, *(term.slices.parameter for term in readouts))
        self.potentials = (*real.potentials, *(term.potential for term in readouts))
        self.formula = " ".join([real.formula, *(term.text for term in readouts)])

    def value(self, theta: Tensors) -> torch.Tensor:
        """Not known."""
        raise NoLawError(_NO_VALUE)

    def rate(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """⟨W_p, V_p⟩_j + b_j v_j − k Σ_n s_j a_j."""
        return sum((term.rate(v) for term in self._readouts), self._real.rate(theta, v))

    def magnitude(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """Every product of the rate counted with its absolute value."""
        return sum((term.magnitude(v) for term in self._readouts), self._real.magnitude(theta, v))


class ReadoutGram:
    """The same for a linear group: the matrix −Σ_n (s_j a_l + s_l a_j).

    Args:
        slices: the features.
        potential: its :class:`Readout`.
        coefficient: −1.
        index: (groups, channels, features per channel) which features a channel owns.
    """

    slope = 0

    def __init__(self, slices: Slices, potential: Readout, coefficient: float, index: torch.Tensor) -> None:
        self.slices, self.potential, self.coefficient, self.index = slices, potential, coefficient, index

    def value(self, theta: Tensors) -> torch.Tensor:
        """Not known."""
        raise NoLawError(_NO_VALUE)

    def drift(self, theta: Tensors, delta: Tensors) -> torch.Tensor:
        """DᵀV + VᵀD is linear."""
        raise NoLawError(_NO_VALUE)

    def rate(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """−Σ_n (s_j a_l + s_l a_j), (groups, channels, channels)."""
        signal, activation = v[self.slices.parameter]
        return self.coefficient * self._symmetric(signal, activation)

    def magnitude(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """The same of absolute values."""
        signal, activation = v[self.slices.parameter].abs()
        return self._symmetric(signal, activation)

    def _symmetric(self, signal: torch.Tensor, activation: torch.Tensor) -> torch.Tensor:
        rows = [x.T[self.index].flatten(2) for x in (signal, activation)]  # (groups, channels, features · n)
        cross = rows[0] @ rows[1].mT
        return cross + cross.mT

    @property
    def text(self) -> str:
        """The term in print, with its sign."""
        return _text(self.slices, self.coefficient, "(DᵀV + VᵀD)")


def _text(slices: Slices, coefficient: float, body: str) -> str:
    size = abs(coefficient)
    tap = slices.parameter.removesuffix(" (readout)")
    return f"{'−' if coefficient < 0 else '+'} {'' if size == 1 else f'{size:g}·'}{body} of tap {tap}"


# -- signal and activation in a backward pass --------------------------------------------------------------------------


@contextmanager
def recorded(model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Run and differentiate a model inside: readout name -> (s, a) of every tap; nothing without a direct rule.

    e is what arrives at the logits in that backward pass, s the rule's own ``signal`` of it.
    """
    attachment = direct_attachment(model)
    found: dict[str, torch.Tensor] = {}
    if attachment is None:
        yield found
        return
    with watched(attachment, _Recorder(attachment, found)):
        yield found


class _Recorder:
    """A :class:`lawful.conservation.taps.Watcher` of numbers."""

    def __init__(self, attachment: DirectAttachment, found: dict[str, torch.Tensor]) -> None:
        self._attachment, self._found = attachment, found

    def pause(self) -> None:
        """Nothing to pause."""

    def note(self, output: torch.Tensor) -> torch.Tensor:
        """The activation."""
        return output.detach().clone()

    def cut(self, cut: Cut, passed: Any) -> None:
        """Nothing to do."""

    def teach(self, cuts: list[Cut], logits: torch.Tensor, taught: torch.Tensor) -> None:
        """Wait for the error at the logits."""
        for cut in cuts:
            positions = self._attachment.positions(cut.key, cut.output, logits)
            activation = cut.note.reshape(cut.note.shape[:positions].numel(), -1)
            self._found[readout_name(cut.key)] = torch.stack([torch.zeros_like(activation), activation])
        if taught.requires_grad:
            taught.register_hook(lambda error: self._arrived(error.detach(), cuts))

    def _arrived(self, error: torch.Tensor, cuts: list[Cut]) -> None:
        for cut in cuts:
            pair = self._found[readout_name(cut.key)]
            rule, state = self._attachment.rules[cut.key], self._attachment.state(cut.key)
            pair[0] += rule.signal(error.reshape(pair.shape[1], -1).to(pair), state)
