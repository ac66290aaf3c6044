"""Attention, transformer layers, and Bilinear against the saved-tensor oracle."""

from __future__ import annotations

import copy

import pytest
import torch
from oracle import check_against_oracle
from torch import nn

import lawful

F64 = {"dtype": torch.float64}


def data(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


OPTIONS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "bias_k, bias_v": {"add_bias_kv": True},
    "zero attention": {"add_zero_attn": True},
    "separate": {"kdim": 5, "vdim": 7},
    "separate, no bias": {"kdim": 5, "vdim": 7, "bias": False, "batch_first": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("need_weights", [True, False], ids=["weights", "no weights"])
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "one"])
def test_multihead_attention(options, need_weights, batched):
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, **options, **F64)
    sizes = (8, options.get("kdim", 8), options.get("vdim", 8))
    lengths = (4, 6, 6)
    time = 0 if not batched or not options.get("batch_first") else 1
    shapes = [[n, 3] if time == 0 else [3, n] for n in lengths] if batched else [[n] for n in lengths]
    q, k, v = (data(*s, e, seed=i) for i, (s, e) in enumerate(zip(shapes, sizes, strict=True)))
    check_against_oracle(model, q, k, v, need_weights=need_weights)


@pytest.mark.parametrize("shared", ["self", "key is value", "apart"])
@pytest.mark.parametrize("masks", ["none", "causal", "padding", "both", "causal, padding", "per head"])
@pytest.mark.parametrize("need_weights", [True, False], ids=["weights", "no weights"])
def test_masks_and_shared_inputs(shared, masks, need_weights):
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, batch_first=True, **F64)
    x, y, z = (data(3, 4, 8, seed=s) for s in range(3))
    inputs = {"self": (x, x, x), "key is value": (x, y, y), "apart": (x, y, z)}[shared]
    causal = torch.ones(4, 4, dtype=torch.bool).triu(1)
    padding = torch.tensor([[False] * 4, [False, False, True, True], [False, False, False, True]])
    options = {
        "none": {},
        "causal": {"attn_mask": causal, "is_causal": True},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": causal, "key_padding_mask": padding, "average_attn_weights": False},
        "causal, padding": {"attn_mask": causal, "is_causal": True, "key_padding_mask": padding},
        "per head": {"attn_mask": data(6, 4, 4)},
    }[masks]
    check_against_oracle(model, *inputs, need_weights=need_weights, **options)


def test_attention_dropout_draws_the_same_mask():
    model = nn.MultiheadAttention(8, 2, dropout=0.5, **F64)
    plain, x = copy.deepcopy(model), data(4, 3, 8)
    lawful.attach(model, lawful.FeedbackAlignment())
    outputs = []
    for m in (plain, model):
        torch.manual_seed(1)
        outputs.append(m(x, x, x)[0])
    assert torch.equal(*outputs)


@pytest.mark.parametrize("norm_first", [True, False], ids=["pre-norm", "post-norm"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_transformer_encoder(norm_first, training):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=norm_first, **F64)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    attachment = check_against_oracle(model, data(3, 4, 8))
    assert {"layers.0.self_attn.in_proj_weight", "layers.1.linear2.weight"} <= set(attachment.feedback)
    x, attached = data(3, 4, 8), copy.deepcopy(model)
    attachment.remove()
    with torch.no_grad():
        assert torch.equal(attached(x), model(x)), "without grad mode torch's own forward runs, fast path included"


def test_transformer_decoder():
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(8, 2, 12, dropout=0.0, batch_first=True, **F64)
    model = nn.TransformerDecoder(layer, 2)
    mask = nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64)
    check_against_oracle(model, data(3, 4, 8), data(3, 5, 8, seed=1), tgt_mask=mask, tgt_is_causal=True)


def test_bilinear():
    check_against_oracle(nn.Bilinear(3, 4, 5, **F64), data(6, 3), data(6, 4, seed=1))
