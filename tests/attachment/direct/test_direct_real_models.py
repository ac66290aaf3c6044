"""Direct rules on real models, unedited: every parameter has a teacher and a gradient."""

from __future__ import annotations

import pytest
import torch

import lawful

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers
transformers = pytest.importorskip("transformers", reason="needs the extra huggingface")

SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TOKENS = torch.arange(12).view(2, 6)
CASES = {
    "Llama": (
        lambda t: t.LlamaForCausalLM(t.LlamaConfig(vocab_size=16, num_key_value_heads=2, **SIZE)),
        {"input_ids": TOKENS, "labels": TOKENS},
        (16, 16),
    ),
    "GPT-2": (
        lambda t: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
        ),
        {"input_ids": TOKENS, "labels": TOKENS},
        (16, 16),
    ),
    "ViT": (
        lambda t: t.ViTForImageClassification(t.ViTConfig(image_size=8, patch_size=4, num_labels=3, **SIZE)),
        {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 64).view(2, 3, 8, 8), "labels": torch.tensor([0, 1])},
        (3, 5 * 16),
    ),
    "BERT": (
        lambda t: t.BertForSequenceClassification(t.BertConfig(vocab_size=16, num_labels=4, **SIZE)),
        {"input_ids": TOKENS, "labels": torch.tensor([0, 1])},
        (4, 6 * 16),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_is_taught(name):
    make, batch, shape = CASES[name]
    torch.manual_seed(0)
    model = make(transformers).eval()
    with torch.no_grad():
        plain = model(**batch).logits
    attachment = lawful.attach(model, lawful.DirectFeedbackAlignment())
    out = model(**batch)
    assert torch.equal(out.logits, plain), "the forward pass must not change"
    out.loss.backward()
    assert [tuple(D.shape) for D in attachment.feedback.values()] == [shape, shape]
    assert all(sentence.startswith("taught by") for sentence in attachment.coverage.values())
    before = {n: p.grad.clone() for n, p in model.named_parameters()}
    first = attachment.taps[0]
    attachment.feedback[first].mul_(2)
    model.zero_grad()
    model(**batch).loss.backward()
    for parameter, gradient in ((p, before[n]) for n, p in model.named_parameters() if n.startswith(f"{first}.")):
        assert torch.allclose(parameter.grad, 2 * gradient, rtol=1e-4, atol=1e-7), "the block hears its own D alone"
