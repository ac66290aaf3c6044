"""Rotary attention: per head and rotated pair one number, the trace; whole matrices among channels left unrotated."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from law_rates import Flow
from torch import nn

HALF, INTERLEAVED = "half", "interleaved"


class Rotary(nn.Module):
    """Causal attention of ``heads`` query heads over ``groups`` key heads, the first ``turned`` channels rotated."""

    def __init__(self, layout, heads=2, groups=2, turned=4, head_dim=4):
        super().__init__()
        self.layout, self.heads, self.groups, self.turned = layout, heads, groups, turned
        self.q, self.k = nn.Linear(5, heads * head_dim), nn.Linear(5, groups * head_dim)
        self.v, self.o = nn.Linear(5, groups * head_dim), nn.Linear(heads * head_dim, 3)
        frequency = 10.0 ** -torch.arange(turned // 2, dtype=torch.float64)
        angle = torch.arange(6, dtype=torch.float64)[:, None] * frequency
        both = torch.cat([angle, angle], -1) if layout == HALF else angle.repeat_interleave(2, -1)
        self.register_buffer("cos", both.cos())
        self.register_buffer("sin", both.sin())

    def rotate(self, x):
        x, rest = x.split([self.turned, x.shape[-1] - self.turned], -1)
        if self.layout == HALF:
            a, b = x.chunk(2, -1)
            turned = torch.cat([-b, a], -1)
        else:
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        return torch.cat([x * self.cos + turned * self.sin, rest], -1)

    def forward(self, x):
        q, k, v = (
            y.unflatten(-1, (heads, -1)).transpose(1, 2)
            for y, heads in ((self.q(x), self.heads), (self.k(x), self.groups), (self.v(x), self.groups))
        )
        k, v = (y.repeat_interleave(self.heads // self.groups, 1) for y in (self.rotate(k), v))
        y = F.scaled_dot_product_attention(self.rotate(q), k, v, is_causal=True)
        return self.o(y.transpose(1, 2).flatten(2))


def inputs(seed=0):
    return torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def head_rate(theta, gradients, q, k, head, heads, groups, size=4):
    """d/dt of W_QW_Qᵀ + b_qb_qᵀ − W_KW_Kᵀ − b_kb_kᵀ of one key head, summed over its query heads."""
    per = heads // groups
    total = torch.zeros(size, size, dtype=torch.float64)
    rows = [(q, slice(h * size, (h + 1) * size), 1) for h in range(head * per, (head + 1) * per)]
    for name, row, sign in [*rows, (k, slice(head * size, (head + 1) * size), -1)]:
        for part in ("weight", "bias"):
            W, g = (t[f"{name}.{part}"][row].reshape(size, -1) for t in (theta, gradients))
            total += sign * (W @ g.T + g @ W.T)
    return total


def conserved(rates):
    """How many linear combinations of the entries of a symmetric matrix stand still, over all measured rates."""
    upper = tuple(torch.triu_indices(*rates[0].shape))
    values = torch.linalg.svdvals(torch.stack([rate[upper] for rate in rates]))
    return len(upper[0]) - int((values > 1e-9 * values[0]).sum())


CASES = {
    "half": (Rotary, {"layout": HALF}, [[0, 2], [1, 3]], 0),
    "interleaved": (Rotary, {"layout": INTERLEAVED}, [[0, 1], [2, 3]], 0),
    "partial, half": (Rotary, {"layout": HALF, "turned": 2}, [[0, 1]], 2),
    "partial, interleaved": (Rotary, {"layout": INTERLEAVED, "turned": 2}, [[0, 1]], 2),
    "grouped queries": (Rotary, {"layout": HALF, "heads": 4}, [[0, 2], [1, 3]], 0),
    "one key head": (Rotary, {"layout": INTERLEAVED, "heads": 2, "groups": 1}, [[0, 1], [2, 3]], 0),
    "grouped and partial": (Rotary, {"layout": HALF, "heads": 4, "turned": 2}, [[0, 1]], 2),
}


@pytest.mark.parametrize("name", CASES)
def test_the_traces_hold_and_nothing_else_does(name):
    make, options, pairs, rest = CASES[name]
    model = make(**options)
    flow = Flow(model, inputs())
    assert flow.worst() < 1e-10 and Flow(model, inputs(), "weight mirror").worst() < 1e-10
    laws = [law for law in flow.laws.of_kind("neuron") if law.name == "q + k"]
    matrices = [law for law in flow.laws.of_kind("matrix") if law.name == "q + k"]
    assert sum(len(law.names) for law in laws) == model.groups * (len(pairs) + rest)
    assert sum(len(law.names) for law in matrices) == (model.groups * rest * (rest + 1) // 2 if rest else 0)
    gradients = [flow.gradients(inputs(seed), seed=seed) for seed in range(12)]
    rates = [head_rate(flow.theta, g, "q", "k", 0, model.heads, model.groups) for g in gradients]
    for pair in pairs:
        trace, size = sum(rates[0][j, j] for j in pair), sum(rates[0][j, j].abs() for j in pair)
        assert abs(float(trace)) < 1e-10 * float(size)
        assert abs(float(rates[0][pair[0], pair[0]])) > 1e-6 * float(size)  # not each channel
    assert conserved(rates) == len(pairs) + rest * (rest + 1) // 2


@pytest.mark.parametrize("name", CASES)
def test_key_biases_of_unrotated_channels_alone_are_constant(name):
    make, options, _, rest = CASES[name]
    model = make(**options)
    flow = Flow(model, inputs())
    shifts = [law for law in flow.laws.of_kind("shift") if law.name == "k"]
    assert sum(len(law.names) for law in shifts) == model.groups * rest
    turned = flow.g["k.bias"].reshape(model.groups, -1)[:, : model.turned]
    assert float(turned.abs().max()) > 1e-6 * float(flow.g["k.weight"].abs().max())


def test_the_value_of_a_trace_by_hand():
    flow = Flow(Rotary(HALF, heads=4), inputs())
    (law,) = (law for law in flow.laws.of_kind("neuron") if law.name == "q + k")
    square = {n: flow.theta[f"{n}.weight"].square().sum(1) + flow.theta[f"{n}.bias"].square() for n in ("q", "k")}
    q, k = square["q"].reshape(2, 2, 2, 2), square["k"].reshape(2, 2, 2)  # (group, head, half, pair)
    torch.testing.assert_close(law.value(flow.theta).abs(), (q.sum((1, 2)) - k.sum(1)).reshape(-1).abs() / 2)


# -- models of transformers ----------------------------------------------------------------------------------------


def tokens(seed=0):
    return {
        "input_ids": torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(seed)),
        "use_cache": False,
    }


def llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
    )
    return transformers.LlamaForCausalLM(config)


def neox():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTNeoXConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        rotary_pct=0.5,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPTNeoXForCausalLM(config)


def gptj():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTJConfig(
        vocab_size=20, n_embd=16, n_layer=1, n_head=2, rotary_dim=4, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPTJForCausalLM(config)


def test_llama_conserves_the_traces_and_no_more():
    model = llama()
    attention = "model.layers.0.self_attn"
    for rule in ("weight mirror", "fa"):
        flow = Flow(model, (), rule, kwargs=tokens())
        assert max(flow.violation(law) for law in flow.laws.of_kind("neuron", "matrix")) < 1e-10
        assert max(flow.violation(law) for law in flow.laws.of_kind("scale")) < 1e-5  # its norms are in float32
    laws = {law.name: len(law.names) for law in flow.laws.of_kind("neuron")}
    assert laws[f"{attention}.q_proj + {attention}.k_proj"] == 4  # 2 key heads, 2 pairs
    (scale,) = flow.laws.of_kind("scale")
    assert scale.name == f"model.embed_tokens + {attention}.o_proj + model.layers.0.mlp.down_proj"
    gradients = [flow.gradients((), kwargs=tokens(seed), seed=seed) for seed in range(12)]
    for head in range(2):
        names = f"{attention}.q_proj", f"{attention}.k_proj"
        rates = [head_rate(flow.theta, g, *names, head, 4, 2) for g in gradients]
        assert conserved(rates) == 2


@pytest.mark.parametrize("make", [neox, gptj])
def test_partial_rotary_in_transformers(make):
    """Half-split and packed (GPT-NeoX), interleaved (GPT-J): 2 heads of 8 channels, of which 4 are rotated."""
    model = make().eval()
    for rule in ("fa", "weight mirror"):
        flow = Flow(model, (), rule, kwargs=tokens())
        assert flow.worst() < 1e-10
    pairs = [law for law in flow.laws.of_kind("neuron") if "'" in law.formula]
    assert [len(law.names) for law in pairs] == [4]
    assert 20 in [len(law.names) for law in flow.laws.of_kind("matrix")]
    if make is neox:
        constant = [law for law in flow.laws.of_kind("shift") if "query_key_value.bias" in law.formula]
        assert [len(law.names) for law in constant] == [8]
