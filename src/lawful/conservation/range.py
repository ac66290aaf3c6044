"""Directions that a layer never moves in: N W_i and N b_i are constant where N C_i = 0.

C_L = 1 at the output (with a softmax only errors that sum to zero), C_i = B_{i+1}ᵀ C_{i+1} where layer i+1 reads the
outputs of layer i as they are, direct rules C_i = D_iᵀ; C = 1 for the outputs of a layer with anything else behind
them. Then δ_i = (…) C_iᵀ for every example, so W_i moves by C_i (…) only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lawful.affine.maps import AffineMap
from lawful.affine.slices import Slices
from lawful.conservation.balance import Ids
from lawful.conservation.base import Law, Tensors
from lawful.conservation.direct import Tapped, is_linear
from lawful.conservation.error_maps import FeedbackOf, Hop, Reads
from lawful.conservation.potential import Potential
from lawful.conservation.trace import Trace

_SOURCE = "range of the error under constant feedback"


@dataclass(frozen=True)
class Errors:
    """The errors that can arrive at a layer's outputs: the span of the columns of C.

    Args:
        columns: parameters -> C (out, r); None where all errors can.
        bound: no rank of C is larger, at any weights.
        texts: how a formula writes Cᵀ, whose kernel holds the rows of N; one text per reader.
        parameters: names that C reads.
        potentials: that it comes from.
    """

    columns: Callable[[Tensors], torch.Tensor] | None
    bound: int
    texts: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    potentials: tuple[Potential, ...] = ()


class RangeLaw(Law):
    """N W (or N b), the rows of N an orthonormal basis of the directions N C = 0; the feedback is read live.

    Args:
        slices: the lines W[j].
        errors: C.
        count: number of rows of N.
    """

    kind = "range"
    source = _SOURCE

    def __init__(self, slices: Slices, errors: Errors, count: int) -> None:
        self.slices, self.errors, self.count = slices, errors, count
        self.name = slices.site
        self.parameters = tuple(dict.fromkeys([slices.parameter, *errors.parameters]))
        self.potentials = errors.potentials
        letter = slices.text.removesuffix("[j]").removesuffix("[:, j]")
        self.formula = f"ker({', '.join(errors.texts)})ᵀ {letter}"
        length = torch.Size(slices.shape).numel() // slices.count
        self.names = _Names(f"{slices.site} · N {letter.rpartition('.')[2]}", count, length)

    def _null(self, theta: Tensors, like: torch.Tensor) -> torch.Tensor:
        assert self.errors.columns is not None
        C = self.errors.columns({name: t.double() for name, t in theta.items() if name in self.errors.parameters})
        return torch.linalg.svd(C, full_matrices=True).U[:, -self.count :].T.to(like)

    def value(self, theta: Tensors) -> torch.Tensor:
        """N W, flattened."""
        lines = self.slices.lines(theta[self.slices.parameter])
        return (self._null(theta, lines) @ lines).reshape(-1)

    def rate(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """N V."""
        lines = self.slices.lines(v[self.slices.parameter])
        return (self._null(theta, lines) @ lines).reshape(-1)

    def drift(self, theta: Tensors, delta: Tensors) -> torch.Tensor:
        """Zero: the law is linear."""
        return delta[self.slices.parameter].new_zeros(len(self.names))

    def magnitude(self, theta: Tensors, v: Tensors) -> torch.Tensor:
        """|N| |V|."""
        lines = self.slices.lines(v[self.slices.parameter]).abs()
        return (self._null(theta, lines).abs() @ lines).reshape(-1)


class _Names(Sequence[str]):
    """Names written down when asked for: there is one per row of N and column of W."""

    def __init__(self, stem: str, rows: int, columns: int) -> None:
        self._stem, self._rows, self._columns = stem, rows, columns

    def __len__(self) -> int:
        return self._rows * self._columns

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return f"{self._stem} ({index // self._columns}, {index % self._columns})"


def range_laws(trace: Trace, feedback: FeedbackOf, *, softmax: bool) -> Iterator[RangeLaw]:
    """The range laws of every layer whose outputs are read, as they are, through constant feedback alone."""
    ranges = _Ranges(trace, feedback, softmax)
    for amap in trace.applied:
        errors = ranges.behind(amap)
        count = 0 if errors is None or errors.columns is None else ranges.free(amap, errors)
        if errors is not None and errors.texts and count > 0:
            for slices in amap.slices:
                yield RangeLaw(slices, errors, count)


class _Ranges:
    def __init__(self, trace: Trace, feedback: FeedbackOf, softmax: bool) -> None:
        self._trace, self._feedback, self._softmax = trace, feedback, softmax
        self._reads = Reads(trace)
        self._lines = {amap: uses[0][0] for amap, uses in trace.alone.items()}
        self._readers = {
            int(amount): amap
            for amap, uses in trace.alone.items()
            for _, amounts in uses
            for amount in amounts.tolist()
        }
        self._found: dict[AffineMap, Errors | None] = {}

    def free(self, amap: AffineMap, errors: Errors) -> int:
        """How many directions no error reaches."""
        assert errors.columns is not None
        if self._feedback.live:
            return amap.channels - errors.bound
        theta = {name: self._feedback.theta[name].double() for name in errors.parameters}
        return amap.channels - int(torch.linalg.matrix_rank(errors.columns(theta)))

    def behind(self, amap: AffineMap) -> Errors | None:
        """C of a layer's outputs; None for what is no layer with outputs of its own."""
        if amap not in self._found:
            ids = self._feedback.once(amap)
            single = ids is not None and is_linear(amap) and len(self._trace.applied.get(amap, ())) == 1
            self._found[amap] = self._of(amap, ids) if single and ids is not None else None
        return self._found[amap]

    def _of(self, amap: AffineMap, ids: Ids) -> Errors:
        everything = Errors(None, len(ids))
        reasons = set().union(*(self._trace.balance.reasons.get(i, set()) for i in ids.tolist()))
        _, amounts = self._reads.of(ids)
        if reasons == {"it is an output"} and not len(amounts):
            return self._at_the_output(ids) if self._softmax else everything
        if reasons or not len(amounts):
            return everything
        readers = dict.fromkeys(self._readers.get(amount) for amount in amounts.tolist())
        parts = [self._through(amap, ids, reads) if reads is not None else None for reads in readers]
        if any(part is None for part in parts):
            return everything
        return _joined([part for part in parts if part is not None], len(ids))

    def _at_the_output(self, ids: Ids) -> Errors:
        n = len(ids)
        seen = any(sight.what == "softmax output" and np.array_equal(sight.line, ids) for sight in self._trace.norms)
        centred = torch.eye(n, dtype=torch.float64) - 1 / n
        return Errors(lambda theta: centred, n - 1) if seen else Errors(None, n)

    def _through(self, amap: AffineMap, ids: Ids, reads: AffineMap) -> Errors | None:
        """The errors that one reader of the very outputs of a layer sends back."""
        out = self._trace.applied[amap][0][1]
        tap = self._feedback.taps.get(reads)
        line = self._lines[reads]
        if len(line) != len(ids) or not np.array_equal(line, np.arange(len(ids))):
            return None
        if tap is not None:
            exact = tap.output is out and tap.passed.dim() == out.dim()
            return self._at_the_tap(tap) if exact else None
        exact = any(x is out for x, _ in self._trace.applied.get(reads, ()))
        hops = self._feedback.hops(reads) if exact else []
        return self._back(hops[0], self.behind(reads)) if hops else None

    def _at_the_tap(self, tap: Tapped) -> Errors:
        direct = self._feedback.direct
        assert direct is not None

        def columns(theta: Tensors) -> torch.Tensor:
            return direct.signal(tap, direct.errors(tap, 3)).T

        rank = int(torch.linalg.matrix_rank(columns({})))
        return Errors(columns, rank, (f"D({tap.key})",))

    def _back(self, hop: Hop, behind: Errors | None) -> Errors:
        """BᵀC."""
        n = len(hop.onward)
        further = Errors(None, n) if behind is None else behind
        after = further.columns

        def columns(theta: Tensors) -> torch.Tensor:
            lines = hop.lines(theta)
            return lines if after is None else lines @ after(theta).to(lines)

        texts = tuple(f"{text} {hop.text}" for text in further.texts) or (hop.text,)
        names = (*([] if hop.parameter is None else [hop.parameter]), *further.parameters)
        return Errors(columns, min(n, further.bound), texts, names, (*hop.potentials, *further.potentials))


def _joined(parts: Sequence[Errors], size: int) -> Errors:
    """Several readers: their errors add up."""

    def columns(theta: Tensors) -> torch.Tensor:
        return torch.cat([part.columns(theta) for part in parts if part.columns is not None], 1)

    return Errors(
        columns,
        min(size, sum(part.bound for part in parts)),
        tuple(text for part in parts for text in part.texts),
        tuple(dict.fromkeys(name for part in parts for name in part.parameters)),
        tuple(psi for part in parts for psi in part.potentials),
    )
