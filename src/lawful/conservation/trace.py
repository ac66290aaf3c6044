"""Runs a model once and follows every channel: which tensor elements belong to which channel, and who reads them.

Each tensor of the run carries labels: an integer tensor of its own shape whose entries name the channel (a variable of
the :class:`~lawful.conservation.balance.Balance`) that an element belongs to. Reshaping, slicing, concatenating a
tensor does the same to its labels, so flatten blocks, heads, chunks and residual streams need no special case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lawful.affine.maps import AffineMap
from lawful.affine.slices import Slices
from lawful.conservation.balance import NOT_LINEAR, Balance, Ids, Known, Unseen
from lawful.conservation.labels import NONE, ZERO, channels_of
from lawful.conservation.norm_calls import NormCall, NormForm
from lawful.conservation.padding import Padding
from lawful.conservation.tensor_facts import node_of, output_of, severed, version_of

Held = Mapping[int, torch.Tensor | None]
"""Labels by the id of a tensor."""

Handler = Callable[["Trace", Callable[..., Any], tuple, dict, Any], None]


@dataclass(frozen=True)
class Sight:
    """A norm, or a softmax, reads the channels ``line`` and cannot see their scale or their shift.

    Args:
        what: "layer norm", "group norm" (a layer norm over positions too), "RMS norm", "norm of padding" (of whatever
            kind: a shift of the channels is seen, since zeros do not shift), "batch norm", "keys" (a softmax over the
            scores with them) or "softmax output".
        line: the channels it reads together.
        call: of the norm; the scale is unseen as its eps → 0.
        rows: which of its rows it is.
    """

    what: str
    line: Ids
    call: NormCall | None = None
    rows: Ids | None = None


class Trace(TorchFunctionMode):
    """The run being followed. Enter it, call the model, leave it, then tie it to the weights.

    Args:
        model: its parameters get their names from here.
        handlers: function name -> what the function does to channels.
        trusting: believe that a custom autograd Function has the backward pass of its forward pass.
    """

    def __init__(self, model: nn.Module, handlers: Mapping[str, Handler], *, trusting: bool = False) -> None:
        super().__init__()
        self.trusting = trusting
        self.balance = Balance()
        self.handlers = handlers
        self.names: dict[int, str] = {}
        self.mixtures = {id(b) for b in model.buffers()}
        self.loose: dict[str, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self.names.setdefault(id(parameter), name)
            if not parameter.requires_grad:
                self.loose[name] = f"{name} is frozen"
            elif parameter.is_complex():
                self.loose[name] = f"{name} is complex"
        self.unknown: list[str] = []
        self.path: list[str] = []
        self.turns: Counter[tuple[str, str]] = Counter()
        self.norms: list[Sight] = []
        self.uneven: set[int] = set()
        self.padding = Padding()
        self.blank: set[int] = set()
        self.moves: dict[int, tuple[str, ...]] = {}
        self.writers: dict[AffineMap, list[Ids]] = {}
        self.readers: dict[tuple[AffineMap, Slices], list[tuple[Ids, Ids]]] = {}
        self.outside: set[tuple[AffineMap, Slices]] = set()
        self.sources: dict[str, list[tuple[Ids, Ids]]] = {}
        self.tied: set[AffineMap] = set()
        self.score_amounts: set[int] = set()
        self.inputs: dict[AffineMap, list[torch.Tensor]] = {}
        self.applied: dict[AffineMap, list[tuple[object, torch.Tensor]]] = {}
        self.carries: list[tuple[Ids, Ids]] = []
        self._unheard: list[Ids] = []
        self._labels: dict[int, torch.Tensor | None] = {}
        self._versions: dict[int, int] = {}
        self._alive: list[object] = []
        self._asked: set[int] = set()
        self._used: set[str] = set()
        self._nodes: dict[object, dict[int, torch.Tensor | None]] = {}
        self.paused = 0

    # -- labels of tensors ---------------------------------------------------------------------------------------

    def label(self, tensor: torch.Tensor, labels: torch.Tensor | None) -> None:
        """Give a tensor its labels; None says that it is known and has no channels."""
        self._labels[id(tensor)] = labels
        self._versions[id(tensor)] = version_of(tensor)
        self._alive.append(tensor)
        self.mixtures.discard(id(tensor))  # it may be an old one, changed in place
        if (node := node_of(tensor)[0]) is not None:
            self._nodes.setdefault(node, {})[output_of(tensor)] = labels

    def labels(self, x: object) -> torch.Tensor | None:
        """The labels of an operand, or None."""
        if not isinstance(x, torch.Tensor):
            return None
        node, _ = node_of(x)
        hidden = node is not None and node not in self._nodes
        written = self._versions.get(id(x)) != version_of(x)  # through a view, or what it is a view of
        self._asked.add(id(x))
        if id(x) not in self._labels or written or (hidden and not self.trusting):
            self._foreign(x)  # perhaps made by known operations, inside a Function with a backward pass of its own
        return self._labels[id(x)]

    def full(self, x: torch.Tensor | float, shape: torch.Size) -> torch.Tensor:
        """Labels broadcast to a shape; NONE where there are none, ZERO for the number 0."""
        found = self.labels(x)
        if found is None:
            zero = not isinstance(x, torch.Tensor) and x == 0
            return torch.full((), ZERO if zero else NONE).expand(shape)
        return found.expand(shape)

    def _foreign(self, tensor: torch.Tensor) -> None:
        """A tensor that no followed operation made: a custom autograd Function hides what it read."""
        made_by, base = node_of(tensor)
        if id(base) in self.names:  # it stands for a parameter
            self.label(tensor, None)
            return
        if self.trusting and made_by is not None and made_by.name() == "BackwardHookFunctionBackward":
            hooked, number = made_by.next_functions[
                output_of(tensor)
            ]  # the identity, to which a module's hooks are tied
            if number in self._nodes.get(hooked, {}):
                self.label(tensor, self._nodes[hooked][number])
                return
        self.spoil(self._labels.get(id(tensor)), f"{made_by.name() if made_by else '?'} is unknown")
        front, seen = [made_by], set()
        while front:
            node = front.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in self._nodes:
                for labels in self._nodes[node].values():
                    self.spoil(labels, f"{made_by.name() if made_by else '?'} is unknown")
                continue
            front += [child for child, _ in node.next_functions]
        if made_by is not None:
            self.note_unknown(made_by.name())
        with self.as_mixture(tensor, tensor):
            self.label(tensor, None)

    # -- what operations do --------------------------------------------------------------------------------------

    def spoil(self, labels: torch.Tensor | None, reason: str) -> None:
        """An unknown amount leaves these channels."""
        if labels is not None:
            ids = torch.unique(labels).numpy()
            self.balance.spoil(ids[ids >= 0], reason)

    def note_unknown(self, what: str) -> None:
        """An operation is not in the tables."""
        entry = f"{what} in {self.path[-1]}" if self.path and self.path[-1] else what
        if entry not in self.unknown:
            self.unknown.append(entry)

    def passes(self, labels: torch.Tensor, degree: float = 1, key: int | None = 0) -> torch.Tensor:
        """Channels of y = σ(x), homogeneous of ``degree``, elementwise or mixing positions: new ones, same places.

        ``key`` None: σ treats channels differently, so it ends linear groups.
        """
        old, place = torch.unique(labels, return_inverse=True)
        alive, new = old >= 0, old.clone()
        ids = self.balance.fresh(int(alive.sum()), activation=True)
        new[alive] = torch.from_numpy(ids)
        source = old[alive].numpy()
        self.balance.read(source, ids, degree, NOT_LINEAR if key is None else self.courses(source))
        self.padding.inherit(source, ids)
        return new[place]

    def passes_by(self, labels: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """:meth:`passes` of a linear mixture of positions, with the linear group of every element given."""
        old, first, place = np.unique(labels.numpy(), return_index=True, return_inverse=True)
        alive = old >= 0
        ids = self.balance.fresh(int(alive.sum()), activation=True)
        key = keys.reshape(-1).numpy()[first[alive]]
        self.balance.read(old[alive], ids, 1, key + (int(keys.max()) + 1) * self.courses(old[alive]))
        self.padding.inherit(old[alive], ids)
        new = old.copy()
        new[alive] = ids
        return torch.from_numpy(new[place.reshape(labels.shape)])

    def norm_call(self, function: str, form: NormForm) -> NormCall:
        """A name for a call of a norm; ``function`` "" where it is the module that runs."""
        module = self.path[-1] if self.path else ""
        if function:  # a module's own turns are counted as it is entered
            self.turns[module, function] += 1
        return NormCall(module, function, self.turns[module, function] - 1, form)

    def blind(self, line: Ids, call: NormCall, rows: Ids) -> None:
        """A batch norm reads these channels, each by itself."""
        self.norms.append(Sight("batch norm", line, call, rows))
        amounts = self.balance.fresh(len(line), known=Known(Unseen(call, rows), np.arange(len(line))))
        self.balance.read(line, amounts, 1, NOT_LINEAR)

    def moved(self, labels: torch.Tensor, how: str, *, each: bool = False) -> None:
        """These channels were sliced, rolled or flipped; channels moved apart meet at other positions afterwards.

        ``each``: every channel in its own way.
        """
        for i in channels_of(labels):
            way = f"{how} as {i}" if each else how
            if way not in self.moves.get(i, ()):
                self.moves[i] = (*self.moves.get(i, ()), way)

    def shift_shows(self, labels: torch.Tensor, *, always: bool = False) -> None:
        """Positions of these channels are not alike when some of them are zero: a shift of a channel shows."""
        if always or self.padding.reaches(labels):
            self.uneven.update(channels_of(labels))

    @contextmanager
    def as_mixture(self, source: object, *outputs: object) -> Iterator[None]:
        """``mixtures`` holds what is a softmax or a constant, however moved: if it sums to one, it always does."""
        mixture = id(source) in self.mixtures
        yield
        if mixture:
            self.mixtures |= {id(y) for y in outputs}

    def unheard(self, shape: torch.Size) -> torch.Tensor:
        """Names for elements whose errors nobody hears: they balance nothing, but can be recognised."""
        ids = self.balance.fresh(shape.numel())
        self._unheard.append(ids)
        return torch.from_numpy(ids).reshape(shape)

    def lines(self, labels: torch.Tensor | None, axis: int, size: int, reason: str) -> Ids:
        """The channel of each index of an axis, (size,); NONE where an index holds several, and those are spoiled."""
        if labels is None:
            return np.full(size, NONE)
        rows = labels.movedim(axis, 0).reshape(labels.shape[axis], -1)
        top = rows.max(dim=1, keepdim=True).values
        pure = ((rows == top) | (rows == ZERO)).all(dim=1)
        self.spoil(rows[~pure], reason)
        return torch.where(pure, top[:, 0], torch.tensor(NONE)).numpy()

    def affine(self, amap: AffineMap, x: Any, axis: int, out: torch.Tensor, out_axis: int) -> None:
        """``out = W x + b``: reads the channels of x along ``axis``, writes new ones along ``out_axis``."""
        into = self.labels(x) if isinstance(x, torch.Tensor) else None
        self.read_lines(amap, into, axis)
        self.applied.setdefault(amap, []).append((x, out))
        ids = self.write(amap)
        self.label_axis(out, ids, out_axis)

    def read_lines(self, amap: AffineMap, labels: torch.Tensor | None, axis: int, into: Slices | None = None) -> None:
        """The consumer side of an affine map; ``into`` where it reads several inputs."""
        into = amap.into if into is None else into
        if into is None:
            return
        self._used.add(into.parameter)
        if labels is None:
            self.outside.add((amap, into))
            return
        if labels.shape[axis] != into.count:
            self.outside.add((amap, into))
            self.spoil(labels, f"{into.parameter} reads it in a way that is not followed")
            return
        self.inputs.setdefault(amap, []).append(labels.movedim(axis, -1))
        line = self.lines(labels, axis, into.count, f"{into.parameter} mixes positions of it")
        for ids in self._unheard:
            line[(line >= ids[0]) & (line <= ids[-1])] = NONE
        if (line == ZERO).all():
            return  # it reads nothing
        channels, number = np.unique(line, return_inverse=True)
        alive = channels >= 0
        amounts = self.balance.fresh(int(alive.sum()))
        number = number - int((~alive).sum())  # lines of no channel become negative
        keys = np.zeros(len(amounts), dtype=np.int64)
        if amap.groups > 1:
            group = np.arange(len(line)) * amap.groups // len(line)
            for g in range(amap.groups):
                keys[np.unique(number[(group == g) & (number >= 0)])] = g + 1
        keys += (amap.groups + 1) * self.courses(channels[alive])
        self.balance.read(channels[alive], amounts, 1, keys)
        self.readers.setdefault((amap, into), []).append((np.maximum(number, NONE), amounts))

    def courses(self, channels: Ids) -> Ids:
        """Numbers channels by how they were moved over positions, the first of them 0; only alike ones mix."""
        courses: dict[tuple[str, ...], int] = {}
        return np.array(
            [courses.setdefault(self.moves.get(i, ()), len(courses)) for i in channels.tolist()], dtype=np.int64
        )

    @property
    def alone(self) -> dict[AffineMap, list[tuple[Ids, Ids]]]:
        """``readers`` by map, of the first input of each: a matrix product has no other."""
        return {amap: uses for (amap, into), uses in self.readers.items() if into == amap.into}

    def carry(self, amounts: Ids, into: Ids) -> None:
        """Whoever reads by ``amounts`` gets back the error of the channels ``into`` itself, summed over positions.

        Tighter than E, which a factor leaves alone: y = a + a', or a mixture of positions whose weights sum to one.
        """
        self.carries.append((amounts, into))

    def source(self, name: str, elements: torch.Tensor, place: torch.Tensor, classes: int) -> Ids:
        """A bare parameter is an operand: the amount it contributes to each class of elements; NONE where unknown.

        ``elements`` numbers its elements. One that reaches several classes contributes to none of them in a known way.
        """
        self._used.add(name)
        size = elements.numel()
        element = elements.expand(place.shape).reshape(-1)
        of = place.reshape(-1)
        low = torch.full((size,), classes).scatter_reduce(0, element, of, "amin")
        high = torch.full((size,), NONE).scatter_reduce(0, element, of, "amax")
        pure = (low == high).numpy()
        impure = np.unique(of[torch.from_numpy(~pure)[element]].numpy())
        classed = np.where(pure & ~np.isin(high.numpy(), impure), high.numpy(), NONE)
        used, number = np.unique(classed, return_inverse=True)
        number = number - int((used < 0).sum())
        used = used[used >= 0]
        amounts = self.balance.fresh(len(used))
        self.sources.setdefault(name, []).append((number, amounts))
        found = np.full(classes, NONE)
        found[used] = amounts
        return found

    def write(self, amap: AffineMap) -> Ids:
        """The producer side of an affine map: its new channels."""
        self._used |= {s.parameter for s in amap.slices}
        ids = self.balance.fresh(amap.channels, activation=True)
        self.writers.setdefault(amap, []).append(ids)
        return ids

    def label_axis(self, out: torch.Tensor, ids: Ids, axis: int) -> None:
        """Name the channels along one axis of a tensor."""
        shape = [1] * out.dim()
        shape[axis] = len(ids)
        self.label(out, torch.from_numpy(ids).reshape(shape).expand(out.shape))

    # -- the mode ------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        name = _name(func)
        before = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        held = self.meet(before)  # a tensor from nowhere is noticed before it is overwritten
        out = func(*args, **kwargs)
        for x in before:  # an operation in place gave it another node
            if (node := node_of(x)[0]) is not None:
                self._nodes.setdefault(node, {}).setdefault(output_of(x), held[id(x)])
        if before:  # the one that operations in place write into
            self._versions[id(before[0])] = version_of(before[0])
        after = [y for y in tree_leaves(args[0] if name == "setitem" else out) if isinstance(y, torch.Tensor)]
        handler = self.handlers.get(name)
        if after:
            with self.accounting(name, before, held, after):
                if handler is not None:
                    handler(self, func, args, kwargs, out)
                else:
                    if any(self.parameter_of(x) for x in before):
                        self.note_unknown(name)
                    self._unhandled(name, [labels for x in before if (labels := self.labels(x)) is not None], out)
        return out

    def meet(self, operands: Sequence[torch.Tensor]) -> dict[int, torch.Tensor | None]:
        """The labels of what an operation is about to read; what was made without a graph sends no error back."""
        held = {}
        for x in operands:
            labels = self.labels(x)
            if labels is not None and severed(x):
                names = [i for ids in self._unheard for i in ids.tolist()]  # of which nothing is claimed
                heard = (labels >= 0) & ~torch.isin(labels, torch.tensor(names, dtype=labels.dtype))
                labels = self._labels[id(x)] = labels.masked_fill(heard, NONE)
            held[id(x)] = labels
        return held

    @contextmanager
    def accounting(
        self, what: str, operands: Sequence[torch.Tensor], held: Held, outputs: Sequence[torch.Tensor]
    ) -> Iterator[None]:
        """Tell inside what an operation does. Operands and parameters that are not asked for there are spoiled."""
        self._asked, self._used = set(), set()
        self.paused += 1
        try:
            yield
        finally:
            self.paused -= 1
        read = {name for x in operands if not severed(x) and (name := self.parameter_of(x)) is not None}
        why = f"is used by {what} in a way that is not followed"
        if not torch.is_grad_enabled() and not self.trusting:  # a custom Function may give it a gradient all the same
            self.loose.update({name: f"{name} is used without a graph" for name in read | self._used})
        if not any(y.requires_grad for y in outputs):
            return
        for x in operands:
            if id(x) not in self._asked:
                self.spoil(held.get(id(x)), f"it {why}")
        viewed = {self.parameter_of(y) for y in outputs}
        for name in read - self._used - viewed:
            self.loose.setdefault(name, f"{name} {why}")

    def parameter_of(self, x: torch.Tensor) -> str | None:
        """The parameter that a tensor is or views."""
        return self.names.get(id(x)) or self.names.get(id(node_of(x)[1]))

    def _unhandled(self, name: str, read: Sequence[torch.Tensor], out: Any) -> None:
        for labels in read:
            self.spoil(labels, f"{name} is unknown")
        if any(bool((labels >= 0).any()) for labels in read):
            self.note_unknown(name)
        for y in tree_leaves(out):
            if isinstance(y, torch.Tensor):
                self.label(y, None)


def _name(func: Any) -> str:
    """``add`` for ``+``, ``torch.add``, ``Tensor.add_`` and ``__radd__``; "get T" for a property."""
    if func.__name__ == "__get__":
        return f"get {func.__self__.__name__}"
    if func.__name__ == "__getitem__":
        return func.__name__
    bare = func.__name__.strip("_")
    return bare[1:] if func.__name__.startswith("__r") and bare[1:] in _REFLECTED else bare


_REFLECTED = {"add", "sub", "mul", "div", "truediv", "pow", "matmul"}
