"""The shared grid: models that tests cross with rules, and an explicit NumPy form of feedback learning in an MLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

Array = np.ndarray

ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], Callable[[Array], Array], Callable[[Array], Array]]] = {
    "identity": (nn.Identity, lambda h: h, np.ones_like),
    "relu": (nn.ReLU, lambda h: np.maximum(h, 0), lambda h: (h > 0) * 1.0),
    "leaky_relu": (lambda: nn.LeakyReLU(0.1), lambda h: np.where(h > 0, h, 0.1 * h), lambda h: np.where(h > 0, 1, 0.1)),
    "tanh": (nn.Tanh, np.tanh, lambda h: 1 - np.tanh(h) ** 2),
}
"""Name -> (module, σ, σ')."""


@dataclass(frozen=True)
class MLP:
    """A multi-layer perceptron of the grid."""

    widths: tuple[int, ...]
    activation: str = "relu"
    bias: bool = True

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.widths))} {self.activation}{'' if self.bias else ' no bias'}"

    def module(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(self.widths[:-1], self.widths[1:], strict=True):
            layers += [nn.Linear(fan_in, fan_out, bias=self.bias, dtype=dtype), ACTIVATIONS[self.activation][0]()]
        return nn.Sequential(*layers[:-1])

    def batch(self, n: int = 5, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.randn(n, self.widths[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
            dtype
        )


MLPS = [
    MLP((3, 1)),
    MLP((3, 4, 1)),
    MLP((3, 4, 1), activation="identity", bias=False),
    MLP((4, 5, 6, 3)),
    MLP((4, 5, 6, 3), activation="tanh"),
    MLP((2, 7, 3, 4, 2), activation="leaky_relu", bias=False),
]


def feedback_gradients(
    model: nn.Sequential, feedback: dict[str, Array], x: Array, output_delta: Array, activation: str
) -> tuple[dict[str, Array], Array]:
    """Gradients of every parameter, and the error at the input, by δ_{i-1} = (δ_i B_i) ⊙ σ'(h_{i-1}) written out."""
    _, sigma, slope = ACTIVATIONS[activation]
    layers = [(name, module) for name, module in model.named_children() if isinstance(module, nn.Linear)]
    inputs, pre = [x], []
    for _, layer in layers:
        h = inputs[-1] @ layer.weight.detach().numpy().T
        pre.append(h if layer.bias is None else h + layer.bias.detach().numpy())
        inputs.append(sigma(pre[-1]))
    delta, gradients = output_delta, {}
    for i in reversed(range(len(layers))):
        name, layer = layers[i]
        gradients[f"{name}.weight"] = np.einsum("no,ni->oi", delta, inputs[i])
        if layer.bias is not None:
            gradients[f"{name}.bias"] = delta.sum(0)
        delta = np.einsum("no,oi->ni", delta, feedback[f"{name}.weight"])
        if i > 0:
            delta = delta * slope(pre[i - 1])
    return gradients, delta
