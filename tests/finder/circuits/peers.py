"""The same networks in PyTorch: the independent reference of the circuits' fields."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lawful.finder.circuits import networks
from lawful.finder.circuits.arithmetic import Floats
from lawful.finder.circuits.circuit import Circuit, backward, forward
from lawful.finder.circuits.nodes import Input, InverseRoot, Mask, Softmax, State

EPS = 0.3


class Peer(nn.Module):
    """Leaves named as the circuit's maps, and a forward pass."""

    def __init__(self, leaves: dict[str, nn.Module], run: Callable):
        super().__init__()
        for name, leaf in leaves.items():
            self.add_module(name, leaf)
        self.run = run

    def forward(self, x):
        return self.run(self, x)


def linear(out, into, bias=False):
    return nn.Linear(into, out, bias=bias)


def heads(m, x, count, *, causal=False):
    """Multi-head attention of (1, tokens, width) by torch's own kernel."""
    made = []
    for h in range(1, count + 1):
        q, k, v = (getattr(m, f"{letter}{h}")(x) for letter in "QKV")
        made.append(F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=1.0))
    return m.O(torch.cat(made, dim=-1))


def linear_attention(m, x):
    q, k, v = m.Q1(x), m.K1(x), m.V1(x)
    return m.O(q @ k.transpose(-1, -2) @ v)


def transformer(m, x):
    x = m.E(x)
    x = x + heads(m, m.N1(x), 1)
    x = x + m.W2(torch.relu(m.W1(m.N2(x))))
    return m.W(x)


def batch_normed(m, x):
    return m.W2(torch.relu(m.N(m.W1(x[0]))))[None]


def rnn(m, x):
    h = torch.relu(m.U(x[:, 0]))
    return m.W(torch.relu(m.U(x[:, 1]) + m.V(h)))


def conv(m, x):
    return m.W(torch.relu(m.K1(x)).flatten(1))


@dataclass
class Pair:
    circuit: Circuit
    model: nn.Module
    shape: tuple[int, ...]


def attention_leaves(count, head, width, out, bias):
    leaves = {f"{letter}{h}": linear(head, width, bias) for h in range(1, count + 1) for letter in "QKV"}
    return {**leaves, "O": linear(out, count * head, bias)}


def pairs() -> dict[str, Pair]:
    """By name; norms have ε = 0.3 on both sides."""
    norm_of = {"rms": lambda n: nn.RMSNorm(n, eps=EPS), "layer": lambda n: nn.LayerNorm(n, eps=EPS)}

    def normed(norm):
        leaves = {"W1": linear(3, 2), "N": norm_of[norm](3), "W2": linear(2, 3)}
        return Peer(leaves, lambda m, x: m.W2(torch.relu(m.N(m.W1(x)))))

    def block(norm, bias):
        leaves = {"E": linear(3, 2), "N1": norm_of[norm](3), **attention_leaves(1, 2, 3, 3, bias)}
        leaves |= {"N2": norm_of[norm](3), "W1": linear(2, 3, bias), "W2": linear(3, 2, bias), "W": linear(2, 3, bias)}
        return Peer(leaves, transformer)

    made = {
        "conv": Pair(networks.convolution(4, (1, 2), 2, 1),
                     Peer({"K1": nn.Conv1d(1, 2, 2, bias=False), "W": linear(1, 6)}, conv), (1, 4)),
        "rnn": Pair(networks.recurrent(2, 2, 2, 1),
                    Peer({"U": linear(2, 2), "V": linear(2, 2), "W": linear(1, 2)}, rnn), (2, 2)),
        "residual": Pair(networks.residual(2, 3, 2, 2),
                         Peer({"E": linear(3, 2), "W1": linear(2, 3), "W2": linear(3, 2), "W": linear(2, 3)},
                              lambda m, x: m.W((y := m.E(x)) + m.W2(torch.relu(m.W1(y))))), (2,)),
        "gated": Pair(networks.gated(2, 3, 2, bias=True),
                      Peer({"A": linear(3, 2, True), "G": linear(3, 2, True), "W": linear(2, 3, True)},
                           lambda m, x: m.W(m.A(x) * torch.relu(m.G(x)))), (2,)),
        "attention": Pair(networks.attention(3, 2, 2, 2, 2, bias=True),
                          Peer(attention_leaves(2, 2, 2, 2, True), lambda m, x: heads(m, x, 2)), (3, 2)),
        "causal": Pair(networks.attention(3, 2, 1, 2, 2, causal=True),
                       Peer(attention_leaves(1, 2, 2, 2, False), lambda m, x: heads(m, x, 1, causal=True)), (3, 2)),
        "linear attention": Pair(networks.attention(3, 2, 1, 2, 2, softmax=False),
                                 Peer(attention_leaves(1, 2, 2, 2, False), linear_attention), (3, 2)),
        "rms norm": Pair(networks.normed("rms", 2, 3, 2), normed("rms"), (2,)),
        "layer norm": Pair(networks.normed("layer", 2, 3, 2), normed("layer"), (2,)),
        "batch norm": Pair(networks.normed("batch", 2, 2, 2, batch=3),
                           Peer({"W1": linear(2, 2), "N": nn.BatchNorm1d(2, eps=EPS), "W2": linear(2, 2)},
                                batch_normed), (3, 2)),
        "transformer, layer norm": Pair(networks.block("layer", 2, 2, 3, 2, 2, 2, bias=True), block("layer", True),
                                        (2, 2)),
        "transformer, rms norm": Pair(networks.block("rms", 2, 2, 3, 2, 2, 2), block("rms", False), (2, 2)),
    }  # fmt: skip
    for number, pair in enumerate(made.values()):
        generator = torch.Generator().manual_seed(number)
        pair.model.double()
        with torch.no_grad():
            for parameter in pair.model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return made


def leaf_of(pair: Pair, name: str) -> str:
    """The peer's leaf for a map of the circuit: γ1 is N1."""
    return name.replace("γ", "N") if name.startswith("γ") else name


def flattened(pair: Pair, tensors: dict[str, torch.Tensor], size: int) -> np.ndarray:
    """θ, or its rate, or B, by the circuit's variables; 0 where a name is missing."""
    flat = np.zeros(size)
    for m in pair.circuit.maps:
        leaf = leaf_of(pair, m.name)
        for at, name in ((m.weight_at, f"{leaf}.weight"), (m.bias_at, f"{leaf}.bias")):
            if at is not None and name in tensors:
                flat[at.ravel()] = tensors[name].detach().numpy().ravel()
    return flat


def true_data(circuit: Circuit, x: np.ndarray) -> Callable:
    """What the network really does with x: the data of every node that has some."""

    def given(number, inputs):
        node = circuit.nodes[number]
        match node:
            case Input():
                return x
            case Mask():
                return (inputs[0] > 0).astype(float)
            case Softmax():
                P = np.exp(inputs[0])
                return P / np.stack([P[..., node.row == r].sum(axis=-1) for r in node.row], axis=-1)
            case InverseRoot():
                return 1 / np.sqrt(inputs[0] + EPS * node.epsilon)

    return given


def float_field(circuit: Circuit, theta: np.ndarray, B: np.ndarray, x: np.ndarray, e: np.ndarray) -> np.ndarray:
    """F in float64 by the circuits' own text."""
    s = State(Floats(), theta, B)
    return backward(circuit, s, forward(circuit, s, true_data(circuit, x)), e)
