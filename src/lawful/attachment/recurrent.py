"""Recurrent nets, unrolled: every step's projections send errors through B, in time and in depth.

Where a gradient is kept, the steps are taken one by one in Python (torch's fused loops have no place for B), in the
order of torch's CPU loops. Without grad mode torch's own forward pass runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import PackedSequence

from lawful.attachment import kernels
from lawful.attachment.kernel import cast_for_autocast
from lawful.attachment.leaf import FeedbackLeaf, sends_no_error

State = tuple[torch.Tensor, ...]
Step = Callable[[torch.Tensor, torch.Tensor, State], State]


def _lstm(from_input: torch.Tensor, from_hidden: torch.Tensor, state: State) -> State:
    i, f, g, o = (from_input + from_hidden).chunk(4, 1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(from_input: torch.Tensor, from_hidden: torch.Tensor, state: State) -> State:
    ri, zi, ni = from_input.chunk(3, 1)
    rh, zh, nh = from_hidden.chunk(3, 1)
    n = torch.tanh(ni + torch.sigmoid(rh + ri) * nh)
    return ((state[0] - n) * torch.sigmoid(zh + zi) + n,)


def _tanh(from_input: torch.Tensor, from_hidden: torch.Tensor, state: State) -> State:
    return (torch.tanh(from_hidden + from_input),)


def _relu(from_input: torch.Tensor, from_hidden: torch.Tensor, state: State) -> State:
    return (torch.relu(from_hidden + from_input),)


STEPS: dict[str, Step] = {"LSTM": _lstm, "GRU": _gru, "RNN_TANH": _tanh, "RNN_RELU": _relu}
"""torch's name of a recurrence -> (W_ih x + b_ih, W_hh h + b_hh, state) to the next state, h first."""

_CELLS = {"LSTMCell": "LSTM", "GRUCell": "GRU", "RNNCell": "RNN"}


def _cast(x: torch.Tensor) -> torch.Tensor:
    return cast_for_autocast(x)


class CellLeaf(FeedbackLeaf):
    """``nn.LSTMCell``, ``nn.GRUCell``, ``nn.RNNCell``."""

    def forward(self, input: torch.Tensor, hx: Any = None) -> Any:  # noqa: A002 - nn.LSTMCell's own name
        """As the cell's own forward pass."""
        if sends_no_error():
            return super().forward(input, hx)
        cell: Any = self
        name = next(mode for kind, mode in _CELLS.items() if kind in {c.__name__ for c in type(self).__mro__})
        mode = f"RNN_{cell.nonlinearity.upper()}" if name == "RNN" else name
        batched = input if input.dim() == 2 else input.unsqueeze(0)
        if hx is None:
            zeros = batched.new_zeros(batched.size(0), cell.hidden_size)
            state = (zeros, zeros) if mode == "LSTM" else (zeros,)
        else:
            given = hx if isinstance(hx, tuple) else (hx,)
            state = tuple(h if input.dim() == 2 else h.unsqueeze(0) for h in given)
        ih, hh = (self.operand(name) for name in ("weight_ih", "weight_hh"))
        from_input = kernels.linear(batched, ih, cell.bias_ih)
        from_hidden = kernels.linear(state[0], hh, cell.bias_hh)
        new = STEPS[mode](from_input, from_hidden, state)
        new = new if input.dim() == 2 else tuple(h.squeeze(0) for h in new)
        return new if mode == "LSTM" else new[0]


class RecurrentLeaf(FeedbackLeaf):
    """``nn.LSTM``, ``nn.GRU``, ``nn.RNN``: layers, directions, projections, dropout and packed sequences."""

    def forward(self, input: Any, hx: Any = None) -> Any:  # noqa: A002 - nn.LSTM's own name
        """As the module's own forward pass, to rounding."""
        if sends_no_error():
            return super().forward(input, hx)
        rnn: Any = self
        if isinstance(input, PackedSequence):
            sizes, order = input.batch_sizes.tolist(), input.sorted_indices
            data, states = self._run(input.data, sizes, self._initial(hx, input.data, sizes[0], order))
            out: Any = PackedSequence(data, input.batch_sizes, order, input.unsorted_indices)
            return out, self._packed(states, input.unsorted_indices)
        batched = input if input.dim() == 3 else input.unsqueeze(0 if rnn.batch_first else 1)
        timed = batched.transpose(0, 1) if rnn.batch_first else batched
        length, count, _ = timed.shape
        if hx is not None and input.dim() == 2:
            hx = tuple(h.unsqueeze(1) for h in hx) if isinstance(hx, tuple) else hx.unsqueeze(1)
        initial = self._initial(hx, timed, count, None)
        data, states = self._run(timed.reshape(length * count, -1), [count] * length, initial)
        out = data.view(length, count, -1)
        out = out.transpose(0, 1) if rnn.batch_first else out
        if input.dim() == 2:
            return out.squeeze(0 if rnn.batch_first else 1), self._packed(tuple(s.squeeze(1) for s in states), None)
        return out, self._packed(states, None)

    def _initial(self, hx: Any, like: torch.Tensor, count: int, order: torch.Tensor | None) -> State:
        rnn: Any = self
        like = _cast(like)
        rows = rnn.num_layers * (2 if rnn.bidirectional else 1)
        if hx is None:
            hidden = like.new_zeros(rows, count, rnn.proj_size or rnn.hidden_size)
            return (hidden, like.new_zeros(rows, count, rnn.hidden_size)) if rnn.mode == "LSTM" else (hidden,)
        given = tuple(_cast(h) for h in (hx if isinstance(hx, tuple) else (hx,)))
        return given if order is None else tuple(h.index_select(1, order) for h in given)

    def _packed(self, states: State, order: torch.Tensor | None) -> Any:
        mine: Any = self
        states = states if order is None else tuple(s.index_select(1, order) for s in states)
        return states if mine.mode == "LSTM" else states[0]

    def _run(self, data: torch.Tensor, sizes: list[int], initial: State) -> tuple[torch.Tensor, State]:
        rnn: Any = self
        directions = ("", "_reverse") if rnn.bidirectional else ("",)
        last: list[State] = []
        for layer in range(rnn.num_layers):
            outputs = []
            for suffix in directions:
                start = tuple(h[len(last)] for h in initial)
                out, end = self._layer(data, sizes, start, f"l{layer}{suffix}", reverse=bool(suffix))
                outputs.append(out)
                last.append(end)
            data = torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]
            if rnn.dropout and layer < rnn.num_layers - 1:
                data = F.dropout(data, rnn.dropout, rnn.training)
        return data, tuple(torch.stack(parts) for parts in zip(*last, strict=True))

    def _layer(
        self, data: torch.Tensor, sizes: list[int], start: State, suffix: str, reverse: bool
    ) -> tuple[torch.Tensor, State]:
        """One direction of one layer; sequences sorted by falling length leave (or, in reverse, enter) at the end."""
        rnn: Any = self
        step = STEPS[rnn.mode]
        b_ih, b_hh = (getattr(rnn, f"bias_{k}_{suffix}") if rnn.bias else None for k in ("ih", "hh"))
        ih, hh = (self.operand_with_B(f"weight_{k}_{suffix}") for k in ("ih", "hh"))
        hr = self.operand_with_B(f"weight_hr_{suffix}") if rnn.proj_size else None
        from_input = kernels.linear(data, ih, b_ih).split(sizes)
        outputs: list[torch.Tensor] = []
        finished: list[State] = []
        state = tuple(h[: sizes[-1] if reverse else sizes[0]] for h in start)
        for t in reversed(range(len(sizes))) if reverse else range(len(sizes)):
            now, size = state[0].size(0), sizes[t]
            if size < now:
                finished.append(tuple(h[size:] for h in state))
                state = tuple(h[:size] for h in state)
            elif size > now:
                state = tuple(torch.cat([h, h0[now:size]]) for h, h0 in zip(state, start, strict=True))
            from_hidden = kernels.linear(state[0], hh, b_hh)
            state = step(from_input[t], from_hidden, state)
            if hr is not None:
                state = (kernels.linear(state[0], hr, None), *state[1:])
            outputs.append(state[0])
        finished.append(state)
        ends = tuple(torch.cat(parts[::-1]) for parts in zip(*finished, strict=True))
        return torch.cat(outputs[::-1] if reverse else outputs), ends
