"""Whole models from configuration, nothing downloaded: every weight covered, gradients equal to the oracle's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracle import check_against_oracle, gradients
from torch import nn

import lawful


def data(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(*shape, size=17):
    return torch.randint(0, size, shape, generator=torch.Generator().manual_seed(0))


def no_dropout(model):
    """Training mode, with every source of randomness off."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.double().train()


def gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=17, n_positions=8, n_embd=8, n_layer=2, n_head=2, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0
    )
    return transformers.GPT2LMHeadModel(config), (), {"input_ids": tokens(2, 6)}


def llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=17,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=8,
    )
    return transformers.LlamaForCausalLM(config), (), {"input_ids": tokens(2, 6)}


def vit():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, image_size=8, patch_size=4
    )
    return transformers.ViTForImageClassification(config), (data(2, 3, 8, 8),), {}


class Block(nn.Module):
    """A residual block as in ResNet-18."""

    def __init__(self, into: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        plain = into == out and stride == 1
        self.downsample = (
            nn.Identity() if plain else nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x):
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.downsample(x))


def resnet18(widths=(4, 6, 8, 10)):
    stages: list[nn.Module] = []
    into = widths[0]
    for i, out in enumerate(widths):
        stages += [Block(into, out, 1 + (i > 0)), Block(out, out)]
        into = out
    stem = [nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    model = nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 5))
    return model, (data(3, 3, 16, 16),), {}


class UNet(nn.Module):
    """Two scales down and up again, with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.middle = nn.Conv2d(6, 6, 3, padding="same", padding_mode="circular")
        self.up2, self.up1 = nn.ConvTranspose2d(6, 6, 2, stride=2), nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.join2, self.join1 = nn.Conv2d(12, 6, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        a = F.gelu(self.down1(x))
        b = F.gelu(self.down2(F.max_pool2d(a, 2)))
        h = F.gelu(self.middle(F.max_pool2d(b, 2)))
        h = F.gelu(self.join2(torch.cat([self.up2(h), b], 1)))
        return self.head(F.gelu(self.join1(torch.cat([self.up1(h), a], 1))))


def unet():
    return UNet(), (data(2, 1, 8, 8),), {}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("make", [gpt2, llama, vit, resnet18, unet])
def test_real_models(make):
    torch.manual_seed(0)
    model, args, kwargs = make()
    no_dropout(model)
    carriers = {
        n
        for n, p in model.named_parameters(remove_duplicate=False)
        if p.ndim > 1 and not any(word in n for word in ("wte", "wpe", "embed_tokens", "cls_token", "position_embed"))
    }
    attachment = check_against_oracle(model, *args, **kwargs)
    assert set(attachment.feedback) == carriers


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_gpt2_ties_its_head_to_the_embedding():
    model, _, _ = gpt2()
    attachment = lawful.attach(model, lawful.FeedbackAlignment())
    assert model.lm_head.weight is model.transformer.wte.weight
    assert "fed back" in attachment.coverage["lm_head.weight"]
    assert "no input error" in attachment.coverage["transformer.wte.weight"]


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def test_tied_weights_share_one_B():
    model = Tied().double()
    attachment = check_against_oracle(model, data(3, 4))
    assert list(attachment.feedback) == ["first.weight"]
    assert attachment.coverage["second.weight"] == "tied to first.weight"
    model.float().double()
    before = gradients(model, data(3, 4))
    attachment.feedback["first.weight"].zero_()
    after = gradients(model, data(3, 4))
    assert after["first.bias"].abs().max() == 0 and before["first.bias"].abs().max() > 0


def test_a_tied_weight_decays_once_a_step():
    model = Tied().double()
    attachment = lawful.attach(model, lawful.KolenPollack(decay=0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attachment.follow(optimizer)
    W, gap = model.first.weight.clone(), model.first.weight - attachment.feedback_of("first.weight")
    gradients(model, data(3, 4))
    optimizer.step()
    torch.testing.assert_close(model.first.weight, 0.5 * W)
    for layer in (model.first, model.second):
        operand = layer.operand("weight")
        torch.testing.assert_close(operand.weight - operand.B, 0.5 * gap)
