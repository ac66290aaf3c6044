"""``laws_of``: every conservation law of a model under the rule attached to it, derived from one run of its code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from lawful.affine.slices import Slices
from lawful.attachment.base import Attachment, attachment_or_none
from lawful.conservation import elementwise, layers
from lawful.conservation.balance import NOT_LINEAR, Known, Relation, Unseen
from lawful.conservation.base import Law, LawSet, LayerLaw
from lawful.conservation.bias import bias_laws
from lawful.conservation.coarse import Stream, stream_relations
from lawful.conservation.direct import DirectTrace
from lawful.conservation.error_maps import FeedbackOf
from lawful.conservation.matrix import GramTerm, MatrixLaw
from lawful.conservation.neuron import NeuronLaw, Term
from lawful.conservation.norm_calls import NormCall, Share
from lawful.conservation.potential import SQUARE, Potential, WholePotential
from lawful.conservation.range import range_laws
from lawful.conservation.readout import Readout, ReadoutGram, ReadoutLaw, ReadoutTerm, direct_attachment, readout_name
from lawful.conservation.run import follow, inputs_of, undone
from lawful.conservation.scale import ScaleLaw
from lawful.conservation.symmetry import shift_laws
from lawful.conservation.taps import watched
from lawful.conservation.ties import tie
from lawful.conservation.trace import Sight, Trace
from lawful.errors import SettingError
from lawful.rules.base import Rule

_HANDLERS: Final = {**elementwise.TABLE, **layers.TABLE}
_DU: Final = "Du, Hu & Lee 2018, Theorem 2.1"
_TANAKA: Final = "Kunin et al. 2021, scale symmetry; over all writers and for any potential"
_SEED: Final = "Robertson & Koyejo 2023, Theorem 5.1, per neuron and for any potential"


_UNBALANCED: Final = "its readers do not balance: degrees that differ, or a weight used in two roles"


@dataclass(frozen=True)
class _Block:
    """What a block of known quantities stands for: the lines of one parameter, as its producer or as a consumer.

    ``potential`` where it is not that of the parameter's own rule: under direct rules.
    """

    slices: Slices
    written: bool
    potential: Potential | None = None


Potentials = Callable[[str], Potential]


def potentials_of(model: nn.Module) -> Potentials:
    """Dotted parameter name -> its potential under the attached rule; ½W² where backpropagation trains."""
    attachment = attachment_or_none(model)
    return lambda name: SQUARE if attachment is None else _attached(attachment, name)


def _attached(attachment: Attachment, name: str) -> Potential:
    rule: Rule | None = attachment.rules.get(name)
    return SQUARE if rule is None else Potential(rule, partial(attachment.state, name))


def laws_of(
    model: nn.Module,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    output: Literal["free", "softmax"] = "free",
    force: bool = False,
    potentials: Potentials | None = None,
    identity: bool = False,
) -> LawSet:
    """The conservation laws of a model's training, derived from one run of ``model(*args, **kwargs)``.

    A site is a set of channels that some affine maps write (producers P) and some read (consumers C), with
    homogeneous operations in between; per channel j

        Σ_P ½(‖W_p[j]‖² + b_p[j]²) − k Σ_C Ψ_j(W_c) = const,

    and where a group of channels stays linear a whole matrix of them. Where feedback is constant in time, linear layers
    also have laws of their biases and of directions that no error reaches, and under direct rules D takes B's place
    (drawn by this run, if it is the first).

    Args:
        model: any module, attached or not (then the rule is backpropagation). A frozen parameter balances nothing.
        args: example inputs, a tensor or a tuple; may be left out when the model starts with a linear layer or an
            embedding. They fix the path through the code, not the laws; only masks must be like those of training (a
            query that sees no key at all ends the bias law of the values).
        kwargs: keyword inputs.
        output: "softmax" when the loss does not see a common shift of the outputs (cross-entropy).
        force: treat activations that are not homogeneous as if they were (degree 1), to see the violation.
        potentials: parameter name -> potential, instead of the attached rule's.
        identity: keep sites whose rule has no potential: their rate vanishes, though it integrates to no law.

    Returns:
        The laws, the reason for every weight whose output channels have none, and the unknown operations.

    Raises:
        SettingError: inputs are needed, or of a wrong kind, or ``output`` is not known.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> [law.formula for law in laws_of(model).of_kind("neuron")]
    ['½‖0.weight[j]‖² + ½‖0.bias[j]‖² − ½‖2.weight[:, j]‖²']
    """
    if output not in ("free", "softmax"):
        raise SettingError(f"laws_of: output must be 'free' or 'softmax'; got {output!r}")
    inputs, named = inputs_of(model, args, kwargs)
    trace = Trace(model, _forced(_HANDLERS) if force else _HANDLERS, trusting=identity)
    attachment = direct_attachment(model)
    if attachment is not None and not attachment.feedback:
        with undone(model):
            model(*inputs, **named)  # draws D, whose shape says what a feature of a block is
    direct = None if attachment is None else DirectTrace(attachment, trace, softmax=output == "softmax")
    with nullcontext() if attachment is None or direct is None else watched(attachment, direct):
        outputs = follow(trace, model, inputs, named)
    classes = []
    for y in tree_leaves(outputs):
        if isinstance(y, torch.Tensor):
            classes.append(_seen_by_softmax(trace, y) if output == "softmax" else None)
            trace.spoil(trace.labels(y), "it is an output")
    taps = [] if direct is None else direct.taps
    readouts = {tap.reads: direct.readout(tap) for tap in taps if direct is not None}
    tie(trace, lambda slices, amap, written: _Block(slices, written, readouts.get(amap)))
    potential = potentials_of(model) if potentials is None else potentials
    theta = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}
    theta |= {readout_name(tap.key): torch.empty(0) for tap in taps}
    laws, covered, lacking = [], set(), {}
    substitutes = {} if direct is None else _substitutes(direct)
    for relation in _variants(trace.balance.solve(), substitutes, identity):
        blocks = [block.term for block, _, _ in relation.parts if isinstance(block.term, _Block)]
        read = {b.slices.parameter: _psi(b, potential) for b in blocks if not b.written}
        flat = [name for name, psi in read.items() if not (psi.linear and (identity or psi.exists(theta[name])))]
        lacks = {name: read[name] for name in flat}
        found = _summed(relation, potential, theta, lacks) if flat else _laws(relation, potential, theta)
        for block in blocks if flat else ():
            lacking[block.slices] = read[flat[0]].lack(flat[0])
        for law in found:
            laws.append(law)
            covered |= {block.slices for block in blocks}
    laws += shift_laws(trace)
    for stream in stream_relations(trace.balance, trace.norms):
        laws += _stream(stream, potential)
    feedback = FeedbackOf(trace, potential, theta, direct, live=identity)
    laws += bias_laws(trace, feedback)
    laws += range_laws(trace, feedback, softmax=output == "softmax")
    order = {name: i for i, name in enumerate(theta)}
    laws.sort(key=lambda law: (order[law.parameters[0]], law.kind != "neuron"))
    return LawSet(laws, _reasons(trace, covered, lacking, theta), trace.unknown, classes)


def _substitutes(direct: DirectTrace) -> dict[Slices, _Block]:
    """Lines of a virtual readout -> those of the real layer that moves like it."""
    found = {}
    for tap in direct.taps:
        substitute = direct.substitute(tap)
        if substitute is not None and tap.reads.into is not None and substitute[0].into is not None:
            found[tap.reads.into] = _Block(substitute[0].into, False, substitute[1])
    return found


def _variants(
    relations: Iterable[Relation], substitutes: Mapping[Slices, _Block], identity: bool
) -> Iterator[Relation]:
    """Each relation with real layers in the place of virtual readouts where there are some; with ``identity`` both."""
    for relation in relations:
        blocks = [known.term for known, _, _ in relation.parts if isinstance(known.term, _Block)]
        virtual = [block.slices for block in blocks if isinstance(block.potential, Readout)]
        real = bool(virtual) and all(slices in substitutes for slices in virtual)
        if identity or not real:
            yield relation
        if real:
            parts = [(_real(known, substitutes), c, members) for known, c, members in relation.parts]
            yield replace(relation, parts=parts)


def _real(known: Known, substitutes: Mapping[Slices, _Block]) -> Known:
    block = known.term
    return replace(known, term=substitutes.get(block.slices, block)) if isinstance(block, _Block) else known


def _psi(block: _Block, potential: Potentials) -> Potential:
    """The potential of a block's parameter; ½W² for what is written."""
    return block.potential or (SQUARE if block.written else potential(block.slices.parameter))


def _seen_by_softmax(trace: Trace, y: torch.Tensor) -> int | None:
    """The axis of the classes: the last, or, as cross-entropy has it, axis 1; None where neither holds channels."""
    labels = trace.labels(y)
    if labels is None or y.dim() < 2:
        return None
    for axis in (-1, 1):
        line = labels.movedim(axis, 0).reshape(y.shape[axis], -1)
        if len(line) > 1 and bool((line == line[:, :1]).all()):  # one class alone is no softmax
            trace.norms.append(Sight("softmax output", line[:, 0].numpy()))
            return axis
    return None


def _forced(handlers: Mapping[str, Any]) -> dict[str, Any]:
    as_linear = elementwise.homogeneous()
    return {**handlers, **dict.fromkeys(elementwise.CURVED, as_linear)}


# -- from relations to laws --------------------------------------------------------------------------------------


def _laws(relation: Relation, potential: Potentials, theta: Mapping[str, torch.Tensor]) -> Iterator[Law]:
    real = [(b.term, c, b.channel, m) for b, c, m in relation.parts if isinstance(b.term, _Block)]
    order = list(theta)
    real.sort(
        key=lambda part: (not part[0].written, order.index(part[0].slices.parameter), part[0].slices.window or ())
    )
    first = real[0][1] if real else 0
    real.sort(key=lambda part: (not part[0].written, part[1] != first))
    unseen = [(b.term, c, m) for b, c, m in relation.parts if isinstance(b.term, Unseen)]
    written = [part for part in real if part[0].written]
    if not written:
        return
    sign = 1 if written[0][1] > 0 else -1
    size = len(relation.groups)
    terms, readouts, own = [], [], [_psi(block, potential) for block, _, _, _ in real]
    to = "".join(f" → tap {psi.key}" for psi in own if isinstance(psi, Readout))
    name, channels = _site([part[0] for part in written]) + to, written[0][3]
    for (block, c, channel, members), psi in zip(real, own, strict=True):
        place = _placed(channel, members)
        if isinstance(psi, Readout):
            readouts.append(ReadoutTerm(block.slices, psi, float(c) * sign, place, size))
        else:
            terms.append(Term(block.slices, psi, float(c) * sign, place, size))
    source = _DU if all(psi is SQUARE for psi in own) else _SEED
    names = [f"{name} · neuron {j}" for j in channels.tolist()]
    if unseen:
        if not readouts:
            every = np.arange(size)
            norms = [_share(norm.call, -sign * c, norm.rows[m], every) for norm, c, m in unseen]
            yield ScaleLaw(name, terms, source, names, norms=norms, summed=False)
        return
    law = NeuronLaw(name, terms, source, names)
    yield ReadoutLaw(law, readouts) if readouts else law
    linear = relation.groups[relation.groups != NOT_LINEAR]
    if any(abs(c) != 1 for _, c, _, _ in real) or len(np.unique(linear)) == len(linear):
        return
    slopes = [psi.slope(theta[b.slices.parameter].double()) for (b, _, _, _), psi in zip(real, own, strict=True)]
    if None not in slopes:
        yield from _matrix(name, relation, real, own, slopes, sign, source)


def _summed(
    relation: Relation, potential: Potentials, theta: Mapping[str, torch.Tensor], lacks: Mapping[str, Potential]
) -> Iterator[Law]:
    """The sum over a layer's neurons, where what ``lacks`` a potential of each column has one of the whole weight."""
    wholes = {name: WholePotential(psi.rule, psi.state) for name, psi in lacks.items() if type(psi) is Potential}
    if len(wholes) < len(lacks) or not all(psi.linear and psi.exists(theta[n]) for n, psi in wholes.items()):
        return
    for law in _laws(relation, lambda name: wholes.get(name) or potential(name), theta):
        if isinstance(law, NeuronLaw) and law.kind == "neuron" and all(map(_is_entire, law.terms)):
            yield LayerLaw(law)


def _is_entire(term: Term) -> bool:
    every = term.slices.window is None and term.channel.numel() == term.slices.count and bool((term.channel >= 0).all())
    return every or not isinstance(term.potential, WholePotential)


def _stream(stream: Stream, potential: Potentials) -> Iterator[Law]:
    """The scale law in front of layer norms: one number for all writers of a stream, or of a group of its channels."""
    real = [(known.term, c, place) for known, c, place in stream.parts if isinstance(known.term, _Block)]
    written = [part for part in real if part[0].written]
    own = [_psi(block, potential) for block, _, _ in real]
    if not written or any(not psi.linear or isinstance(psi, Readout) for psi in own):
        return
    sign = 1 if written[0][1] > 0 else -1
    terms = [
        Term(b.slices, psi, float(c) * sign, torch.from_numpy(place), stream.count)
        for (b, c, place), psi in zip(real, own, strict=True)
    ]
    name = _site([b for b, _, _ in written])
    names = [f"{name} · {'stream' if stream.count == 1 else f'group {g}'}" for g in range(stream.count)]
    norms = [_share(call, -sign * c, rows, np.full(len(rows), place)) for call, c, rows, place in stream.norms]
    yield ScaleLaw(name, terms, _TANAKA, names, norms=norms, summed=True)


def _share(call: NormCall, coefficient: Fraction, rows: np.ndarray, place: np.ndarray) -> Share:
    return Share(call, float(coefficient), torch.from_numpy(rows), torch.from_numpy(place))


def _placed(channel: np.ndarray, members: np.ndarray) -> torch.Tensor:
    """Line -> position among the members of a relation, −1 for the lines of others."""
    position = np.full(int(max(channel.max(), members.max())) + 2, -1)
    position[members] = np.arange(len(members))
    return torch.from_numpy(position[channel])


def _matrix(
    name: str,
    relation: Relation,
    real: Sequence[tuple[_Block, Any, np.ndarray, np.ndarray]],
    own: Sequence[Potential],
    slopes: Sequence[int | None],
    sign: int,
    source: str,
) -> Iterator[Law]:
    labels = relation.groups
    groups = [np.nonzero(labels == g)[0] for g in np.unique(labels[labels != NOT_LINEAR])]
    for size in sorted({len(g) for g in groups if len(g) > 1}):
        chosen = np.stack([g for g in groups if len(g) == size])
        terms = []
        for (block, c, channel, members), psi, slope in zip(real, own, slopes, strict=True):
            place = _placed(channel, members).numpy()
            lines = [np.nonzero(place == j)[0] for j in chosen.reshape(-1)]
            if len({len(line) for line in lines}) > 1:
                return
            index = torch.from_numpy(np.stack(lines).reshape(*chosen.shape, -1))
            if isinstance(psi, Readout):
                terms.append(ReadoutGram(block.slices, psi, float(c) * sign, index))
            else:
                terms.append(GramTerm(block.slices, psi, slope or 0, float(c) * sign, index))
        numbers = next(members for (block, _, _, members) in real if block.written)
        yield MatrixLaw(name, terms, source, [[str(numbers[j]) for j in group] for group in chosen])


def _site(written: Sequence[_Block]) -> str:
    modules = list(dict.fromkeys(block.slices.site for block in written))
    return " + ".join(modules) if len(modules) <= 3 else f"{modules[0]} + … + {modules[-1]} ({len(modules)} writers)"


def _loose_readers(trace: Trace, ids: np.ndarray) -> list[str]:
    """What is the matter with the weights that read channels: frozen, say."""
    reached = trace.balance.reached(ids)
    readers = {
        s.parameter: any(reached[amounts].any() for _, amounts in uses) for (_, s), uses in trace.readers.items()
    }
    return [f"{trace.loose[name]}, and reads it" for name, reads in readers.items() if reads and name in trace.loose]


def _reasons(
    trace: Trace, covered: set[Slices], lacking: Mapping[Slices, str], theta: Mapping[str, torch.Tensor]
) -> dict[str, str]:
    """Why the channels of a writer have no law."""
    found = {}
    for amap, uses in trace.writers.items():
        if covered.isdisjoint(amap.slices):
            why = list(dict.fromkeys(lacking[s] for s in amap.slices if s in lacking))
            why += [trace.loose[s.parameter] for s in amap.slices if s.parameter in trace.loose]
            why = why or trace.balance.reasons_near(np.concatenate(uses))
            why = why or _loose_readers(trace, np.concatenate(uses)) or [_UNBALANCED]
            found[amap.slices[0].parameter] = "; ".join(why[:3])
    met = {s.parameter for amap in trace.writers for s in amap.slices} | {s.parameter for _, s in trace.readers}
    for name, parameter in theta.items():
        if parameter.dim() > 1 and name not in met | trace.sources.keys():
            found[name] = "how it is used is not followed"
    return found
