"""The models that ``lawful train`` knows by name, each built for a data set; the user's own by ``module:factory``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import nn
from torch.nn import functional as F

from lawful.data.base import DataSet
from lawful.errors import SettingError
from lawful.factories import made_by

Builder = Callable[[DataSet], nn.Module]


def mlp(data: DataSet) -> nn.Module:
    """Three affine layers of 256 hidden units with ReLU."""
    inputs = torch.Size(data.input_shape).numel()
    hidden = [nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, data.outputs))


_CONVOLUTIONS: Final[dict[int, tuple[type[nn.Module], type[nn.Module]]]] = {
    2: (nn.Conv1d, nn.MaxPool1d),
    3: (nn.Conv2d, nn.MaxPool2d),
}
"""Number of axes of one input, channels included -> convolution and pooling."""


def cnn(data: DataSet) -> nn.Module:
    """Three convolutions of 16, 32, 32 channels with ReLU and pooling, then one affine layer."""
    if data.is_text or len(data.input_shape) not in _CONVOLUTIONS:
        raise SettingError(f"model 'cnn' expects images or series; data {data.name!r} has inputs {data.input_shape}")
    convolution, pooling = _CONVOLUTIONS[len(data.input_shape)]
    layers: list[nn.Module] = []
    channels = data.input_shape[0]
    for width in (16, 32, 32):
        layers += [convolution(channels, width, 3, padding=1), nn.ReLU(), pooling(2)]
        channels = width
    features = nn.Sequential(*layers, nn.Flatten())
    with torch.no_grad():
        width = features(data.x[:1]).shape[1]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, data.outputs))


class Recurrent(nn.Module):
    """A GRU over the series, read out from its last state."""

    def __init__(self, channels: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.gru = nn.GRU(channels, hidden, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Series (n, channels, T) to logits (n, outputs)."""
        states, _ = self.gru(x.transpose(1, 2))
        return self.head(states[:, -1])


def gru(data: DataSet) -> nn.Module:
    """A GRU of 64 units, for series."""
    if data.is_text or len(data.input_shape) != 2:
        raise SettingError(f"model 'gru' expects series (channels, T); data {data.name!r} has {data.input_shape}")
    return Recurrent(data.input_shape[0], 64, data.outputs)


class Attention(nn.Module):
    """Causal self-attention made of plain linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.merge = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, T, width) to the same."""
        q, k, v = (m(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.query, self.key, self.value))
        return self.merge(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, T, width) to the same."""
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class CharacterTransformer(nn.Module):
    """A causal transformer over characters."""

    def __init__(self, vocabulary: int, context: int, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (n, T) to logits (n, T, vocabulary)."""
        x = self.characters(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def transformer(data: DataSet) -> nn.Module:
    """Two pre-norm blocks of width 64 with four heads, for text."""
    if not data.is_text:
        raise SettingError(f"model 'transformer' expects text; data {data.name!r} has inputs {data.input_shape}")
    return CharacterTransformer(data.outputs, data.input_shape[0])


MODELS: Final[dict[str, Builder]] = {"mlp": mlp, "cnn": cnn, "gru": gru, "transformer": transformer}
"""Name -> builder."""


def build_model(name: str, data: DataSet) -> nn.Module:
    """The model of this name for ``data``; or what ``module:factory``, called without arguments, returns.

    Raises:
        SettingError: no such name, module or factory; the factory returns no module; the model does not suit the data.
    """
    if name in MODELS:
        if data.is_text and name != "transformer":
            raise SettingError(f"model {name!r} reads no tokens: data {data.name!r} needs model 'transformer'")
        return MODELS[name](data)
    if ":" not in name:
        raise SettingError(f"model must be one of {', '.join(MODELS)}, or module:factory; got {name!r}")
    return made_by(name, "model", nn.Module, "an nn.Module")
