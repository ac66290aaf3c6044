"""Small networks by name: convolutions, residual streams, recurrence, attention, normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from lawful.finder.circuits.build import Builder
from lawful.finder.circuits.circuit import Circuit


def convolution(positions: int, channels: Sequence[int], kernel: int, outputs: int) -> Circuit:
    """1-d convolutions with stride 1 and ReLU, then a linear readout of every channel and position."""
    net = Builder()
    a, length = net.input(channels[0] * positions), positions
    for i, (read, write) in enumerate(zip(channels, channels[1:], strict=False)):
        shorter = length - kernel + 1
        weight = net.map(f"K{i + 1}", write, read, kernel)
        places = np.full((write * shorter, read * length), -1)
        for o, c, t, s in np.ndindex(write, read, kernel, shorter):
            places[o * shorter + s, c * length + s + t] = weight.weight_at[o, c, t]
        a, length = net.relu(net.affine(a, places)), shorter
    last = net.dense(a, net.map("W", outputs, net.size(a)))
    name = f"convolution {'-'.join(map(str, channels))}, kernel {kernel}, {positions} positions, {_outputs(outputs)}"
    return net.circuit(name, last)


def residual(inputs: int, stream: int, hidden: int, outputs: int) -> Circuit:
    """Embedding, one residual block x + W_2 ReLU(W_1 x) without normalisation, readout."""
    net = Builder()
    x = net.dense(net.input(inputs), net.map("E", stream, inputs))
    h = net.relu(net.dense(x, net.map("W1", hidden, stream)))
    x = net.add(x, net.dense(h, net.map("W2", stream, hidden)))
    last = net.dense(x, net.map("W", outputs, stream))
    return net.circuit(f"residual {inputs}-{stream}, block {hidden}, {_outputs(outputs)}", last)


def recurrent(inputs: int, hidden: int, steps: int, outputs: int) -> Circuit:
    """ReLU RNN, h_0 = 0, backpropagation through all steps, one readout at the end."""
    net = Builder()
    x, enter, loop = net.input(steps * inputs), net.map("U", hidden, inputs), net.map("V", hidden, hidden)
    h = -1
    for t in range(steps):
        now = net.dense(net.select(x, range(t * inputs, (t + 1) * inputs)), enter)
        h = net.relu(now if t == 0 else net.add(now, net.dense(h, loop)))
    last = net.dense(h, net.map("W", outputs, hidden))
    return net.circuit(f"RNN {inputs}-{hidden}, {steps} steps, {_outputs(outputs)}", last)


def attend(
    net: Builder, x: int, tokens: int, heads: int, head: int, outputs: int, *, bias: bool, causal: bool, softmax: bool
) -> int:
    """Multi-head attention of ``tokens`` vectors; per head Q, K, V of ``head`` channels; one output map O."""
    width, mixed = net.size(x) // tokens, []
    pairs = [(q, k) for q in range(tokens) for k in range(tokens) if k <= q or not causal]
    for h in range(heads):
        Q, K, V = (
            net.dense(x, net.map(f"{letter}{h + 1}", head, width, bias=f"b{letter}{h + 1}" * bias), tokens)
            for letter in "QKV"
        )
        scores = [(s, q * head + c, k * head + c) for s, (q, k) in enumerate(pairs) for c in range(head)]
        P = net.product(Q, K, len(pairs), scores)
        if softmax:
            P = net.softmax(P, [q for q, _ in pairs])
        places = [(q * head + c, s, k * head + c) for s, (q, k) in enumerate(pairs) for c in range(head)]
        mixed.append(net.product(P, V, tokens * head, places))
    joined = net.join(*mixed)
    order = [h * tokens * head + t * head + c for t in range(tokens) for h in range(heads) for c in range(head)]
    by_token = joined if heads == 1 else net.select(joined, order)
    return net.dense(by_token, net.map("O", outputs, heads * head, bias="bO" * bias), tokens)


def attention(
    tokens: int, width: int, heads: int, head: int, outputs: int,
    *, bias: bool = False, causal: bool = False, softmax: bool = True,
) -> Circuit:  # fmt: skip
    """One attention layer on raw tokens; the output of every token is free. Without ``softmax``: linear attention."""
    net = Builder()
    last = attend(net, net.input(tokens * width), tokens, heads, head, outputs,
                  bias=bias, causal=causal, softmax=softmax)  # fmt: skip
    kind = ("causal " if causal else "") + ("attention" if softmax else "linear attention")
    size = f"{tokens} tokens of {width}, {heads} head{'s' * (heads > 1)} of {head}, {_outputs(outputs)}"
    return net.circuit(f"{kind}, {size}{', bias' * bias}", last, outputs)


NORMS = ("rms", "layer", "batch")


def normed(
    norm: str, inputs: int, hidden: int, outputs: int, *, epsilon: bool = True, affine: bool = True,
    bias: bool = False, batch: int = 3,
) -> Circuit:  # fmt: skip
    """W_2 ReLU(norm(W_1 x)): RMS or layer norm of one input, or batch norm (training) of ``batch`` inputs."""
    net, copies = Builder(), batch if norm == "batch" else 1
    first = net.map("W1", hidden, inputs, bias="b1" * bias)
    h = net.dense(net.input(copies * inputs), first, copies)
    channel = list(range(hidden)) * copies
    z = net.normalise(h, channel if norm == "batch" else [0] * hidden, centre=norm != "rms", epsilon=epsilon)
    if affine:
        z = net.rescale(z, net.map("γ", hidden, bias="β" * (norm != "rms")), channel)
    last = net.dense(net.relu(z), net.map("W2", outputs, hidden, bias="b2" * bias), copies)
    size = f"{inputs}-{hidden}-{outputs}" + (f", {batch} inputs" if norm == "batch" else "")
    details = ", ε = 0" * (not epsilon) + ", affine" * affine + ", bias" * bias
    return net.circuit(f"{norm} norm {size}{details}", last, outputs)


def block(
    norm: str, tokens: int, inputs: int, width: int, head: int, hidden: int, outputs: int,
    *, epsilon: bool = True, bias: bool = False,
) -> Circuit:  # fmt: skip
    """A pre-norm transformer: embedding, x + attention(norm x), x + W_2 ReLU(W_1 norm x), readout of every token."""
    net, channel = Builder(), list(range(width)) * tokens
    group = [t for t in range(tokens) for _ in range(width)]

    def scaled(x: int, number: int) -> int:
        z = net.normalise(x, group, centre=norm == "layer", epsilon=epsilon)
        return net.rescale(z, net.map(f"γ{number}", width, bias=f"β{number}" * (norm == "layer")), channel)

    x = net.dense(net.input(tokens * inputs), net.map("E", width, inputs), tokens)
    x = net.add(x, attend(net, scaled(x, 1), tokens, 1, head, width, bias=bias, causal=False, softmax=True))
    h = net.relu(net.dense(scaled(x, 2), net.map("W1", hidden, width, bias="b1" * bias), tokens))
    x = net.add(x, net.dense(h, net.map("W2", width, hidden, bias="b2" * bias), tokens))
    last = net.dense(x, net.map("W", outputs, width, bias="b" * bias), tokens)
    size = f"{tokens} tokens, {inputs}-{width}, head {head}, block {hidden}, {_outputs(outputs)}"
    return net.circuit(f"pre-norm transformer, {norm} norm, {size}{', ε = 0' * (not epsilon)}{', bias' * bias}",
                       last, outputs)  # fmt: skip


def gated(inputs: int, hidden: int, outputs: int, *, bias: bool = False) -> Circuit:
    """ReGLU: W ((A x + a) ⊙ ReLU(G x + g))."""
    net = Builder()
    x = net.input(inputs)
    linear = net.dense(x, net.map("A", hidden, inputs, bias="a" * bias))
    gate = net.relu(net.dense(x, net.map("G", hidden, inputs, bias="g" * bias)))
    h = net.product(linear, gate, hidden, [(u, u, u) for u in range(hidden)])
    last = net.dense(h, net.map("W", outputs, hidden, bias="b" * bias))
    return net.circuit(f"ReGLU {inputs}-{hidden}, {_outputs(outputs)}{', bias' * bias}", last)


def _outputs(outputs: int) -> str:
    return f"{outputs} output{'s' * (outputs > 1)}"


NETWORKS: Final[dict[str, Callable[[], Circuit]]] = {
    "conv": lambda: convolution(4, (1, 2), 2, 1),
    "conv-deep": lambda: convolution(4, (1, 2, 2), 2, 2),
    "residual": lambda: residual(2, 2, 2, 1),
    "residual-2-outputs": lambda: residual(2, 2, 2, 2),
    "residual-wide": lambda: residual(2, 3, 2, 2),
    "rnn": lambda: recurrent(2, 2, 2, 1),
    "rnn-3-steps": lambda: recurrent(1, 2, 3, 2),
    "gated": lambda: gated(2, 2, 1),
    "gated-bias": lambda: gated(2, 2, 1, bias=True),
    "attention": lambda: attention(2, 2, 1, 2, 2),
    "attention-bias": lambda: attention(2, 2, 1, 2, 2, bias=True),
    "attention-causal": lambda: attention(3, 2, 1, 2, 2, causal=True),
    "attention-1-output": lambda: attention(2, 2, 1, 2, 1),
    "attention-2-heads": lambda: attention(3, 3, 2, 2, 2),
    "attention-2-heads-bias": lambda: attention(2, 2, 2, 2, 2, bias=True),
    "linear-attention": lambda: attention(2, 2, 1, 2, 2, softmax=False),
    "linear-attention-bias": lambda: attention(2, 2, 1, 2, 2, bias=True, softmax=False),
    "rms-norm": lambda: normed("rms", 2, 3, 2),
    "rms-norm-0": lambda: normed("rms", 2, 3, 2, epsilon=False),
    "layer-norm": lambda: normed("layer", 2, 3, 2, bias=True),
    "layer-norm-0": lambda: normed("layer", 2, 3, 2, bias=True, epsilon=False),
    "batch-norm": lambda: normed("batch", 2, 2, 1, bias=True, batch=3),
    "batch-norm-0": lambda: normed("batch", 2, 2, 1, bias=True, batch=3, epsilon=False),
    "transformer": lambda: block("rms", 2, 2, 2, 2, 2, 2),
    "transformer-0": lambda: block("rms", 2, 2, 2, 2, 2, 2, epsilon=False),
    "transformer-layer-norm": lambda: block("layer", 2, 2, 3, 1, 2, 2, bias=True),
    "transformer-layer-norm-0": lambda: block("layer", 2, 2, 3, 1, 2, 2, bias=True, epsilon=False),
}
"""The networks of the table in docs/law-counts.md; a 0 at the end says that the norms have ε = 0."""
