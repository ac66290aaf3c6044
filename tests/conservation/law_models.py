"""Models that between them hold every construction the laws know; name -> (model, input)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp, self.f1, self.f2 = nn.Linear(3, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.g1, self.g2, self.out = nn.Linear(6, 7), nn.Linear(7, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = self.inp(x)
        h = h + self.f2(F.relu(self.f1(h)))
        g = F.relu(self.g1(h), inplace=True)
        h = h + self.g2(g)
        return self.out(h)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.b(F.relu(self.a(x)))))))


class Gated(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.activation = activation
        self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.down(self.activation(self.gate(x)) * self.up(x))


class PackedGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 12), nn.Linear(6, 3)

    def forward(self, x):
        gate, value = self.up(x).chunk(2, -1)
        return self.down(F.silu(gate) * value)


class Attention(nn.Module):
    def __init__(self, heads=2, kv_heads=None, rotary=None, fused=True):
        super().__init__()
        self.heads, self.kv_heads, self.rotary, self.fused = heads, kv_heads or heads, rotary, fused
        kv = 8 // heads * self.kv_heads
        self.q, self.k, self.v, self.o = nn.Linear(5, 8), nn.Linear(5, kv), nn.Linear(5, kv), nn.Linear(8, 3)

    def rotate(self, x):
        T, D = x.shape[-2:]
        angle = torch.arange(T, dtype=x.dtype)[:, None] * 10.0 ** (-torch.arange(D // 2, dtype=x.dtype) / D)
        if self.rotary == "half":
            both = torch.cat([angle, angle], -1)
            a, b = x[..., : D // 2], x[..., D // 2 :]
            return x * both.cos() + torch.cat([-b, a], -1) * both.sin()
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(-2)

    def forward(self, x):
        N, T, _ = x.shape
        q = self.q(x).view(N, T, self.heads, -1).transpose(1, 2)
        k, v = (f(x).view(N, T, self.kv_heads, -1).transpose(1, 2) for f in (self.k, self.v))
        if self.rotary:
            q, k = self.rotate(q), self.rotate(k)
        k, v = (y.repeat_interleave(self.heads // self.kv_heads, 1) for y in (k, v))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            score = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
            future = torch.ones(T, T, dtype=torch.bool).triu(1)
            y = F.softmax(score.masked_fill(future, float("-inf")), -1) @ v
        return self.o(y.transpose(1, 2).reshape(N, T, -1))


class MHA(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 2)
        self.m = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, x):
        h = F.relu(self.a(x))
        return self.b(self.m(h, h, h)[0])


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(7, 2, 1)

    def forward(self, x):
        h = F.relu(self.a(x))
        return self.c(torch.cat([h, F.relu(self.b(h))], 1))


class Unrolled(nn.Module):
    def __init__(self):
        super().__init__()
        self.ih, self.hh, self.out = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x):
        h = torch.zeros(x.shape[0], 5, dtype=x.dtype)
        for t in range(x.shape[1]):
            h = F.relu(self.ih(x[:, t]) + self.hh(h))
        return self.out(h)


class ReluRNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.RNN(3, 5, num_layers=2, nonlinearity="relu", batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


class PreNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.head = nn.Embedding(7, 8), nn.Linear(8, 7)
        self.n1, self.n2, self.nf = nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.at = nn.MultiheadAttention(8, 2, batch_first=True)
        self.f1, self.f2 = nn.Linear(8, 9), nn.Linear(9, 8)

    def forward(self, tokens):
        x = self.emb(tokens)
        y = self.n1(x)
        x = x + self.at(y, y, y, need_weights=False)[0]
        x = x + self.f2(F.relu(self.f1(self.n2(x))))
        return self.head(self.nf(x))


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.pos, self.g = (
            nn.Embedding(7, 6),
            nn.Parameter(torch.randn(1, 4, 6)),
            nn.Parameter(torch.randn(6)),
        )
        self.f, self.out = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, tokens):
        return self.out(F.relu(self.f((self.emb(tokens) + self.pos) * self.g)))


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, groups=2, bias=False),
        nn.LeakyReLU(0.1),
        nn.Dropout2d(0.3),
        nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2),
        nn.PReLU(4),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.ReLU(),
        nn.Linear(5, 2),
    )


def batch_normed():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))


SEQUENCE, TOKENS = (2, 6, 5), "tokens"

MODELS = {
    "residual": (Residual, (4, 3)),
    "shared": (Shared, (4, 3)),
    "swiglu": (lambda: Gated(F.silu), (4, 4)),
    "reglu": (lambda: Gated(F.relu), (4, 4)),
    "packed gate": (PackedGate, (4, 4)),
    "attention": (Attention, SEQUENCE),
    "attention by hand": (lambda: Attention(fused=False), SEQUENCE),
    "rotary half": (lambda: Attention(rotary="half"), SEQUENCE),
    "rotary interleaved": (lambda: Attention(rotary="interleaved"), SEQUENCE),
    "grouped query": (lambda: Attention(heads=4, kv_heads=2), SEQUENCE),
    "mha": (MHA, SEQUENCE),
    "mha without bias": (lambda: MHA(bias=False), SEQUENCE),
    "mha with dropout": (lambda: MHA(dropout=0.2), SEQUENCE),
    "densenet": (DenseNet, (2, 2, 6, 6)),
    "unrolled rnn": (Unrolled, (2, 4, 3)),
    "relu rnn": (ReluRNN, (2, 4, 3)),
    "pre-norm": (PreNorm, TOKENS),
    "positions": (Positions, TOKENS),
    "cnn": (cnn, (3, 2, 10, 10)),
    "batch norm": (batch_normed, (3, 2, 8, 8)),
    "batch norm, eval": (lambda: batch_normed().eval(), (3, 2, 8, 8)),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True), (2, 5, 8)),
}


def build(name):
    """The model, in float64, and its input."""
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make().double()
    generator = torch.Generator().manual_seed(1)
    if shape == TOKENS:
        return model, torch.randint(0, 7, (3, 4), generator=generator)
    return model, torch.randn(shape, generator=generator, dtype=torch.float64)
