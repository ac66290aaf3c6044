"""Multi-head attention whose projections send errors through B; what lies between them is autograd's.

The steps are those of ``F.multi_head_attention_forward``, in its order, so that the forward pass is bitwise the same;
only its projections are kernels. ``out_proj`` is a leaf of its own. Without grad mode torch's own forward pass runs,
fast path included, because no error will be sent.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from lawful.attachment import kernels
from lawful.attachment.kernel import Operand
from lawful.attachment.leaf import FeedbackLeaf, sends_no_error

Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

_TORCH: Any = F
"""torch's own checks of shapes and masks, which have no public names."""


class AttentionLeaf(FeedbackLeaf):
    """``nn.MultiheadAttention``: W_Q, W_K, W_V packed or apart, each with its B."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As ``nn.MultiheadAttention.forward``."""
        if sends_no_error():
            return super().forward(
                query,
                key,
                value,
                key_padding_mask=key_padding_mask,
                need_weights=need_weights,
                attn_mask=attn_mask,
                average_attn_weights=average_attn_weights,
                is_causal=is_causal,
            )
        mha: Any = self
        batched = _TORCH._mha_shape_check(query, key, value, key_padding_mask, attn_mask, mha.num_heads)
        query, key, value = _time_first(query, key, value, batched, mha.batch_first)
        if not batched and key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        padding, mask, is_causal = _masks(query, key_padding_mask, attn_mask, is_causal, need_weights)
        q, k, v = self._project(query, key, value)
        heads, weights = _attend(mha, (q, k, v), padding, mask, is_causal, need_weights)
        length, count, _ = query.shape
        out = mha.out_proj(heads).view(length, count, mha.embed_dim)
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            return out.squeeze(1), None if weights is None else weights.squeeze(0)
        return out.transpose(1, 0) if mha.batch_first else out, weights

    def _project(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Triple:
        mha: Any = self
        bias: torch.Tensor | None = mha.in_proj_bias
        if mha.in_proj_weight is None:
            biases = (None, None, None) if bias is None else bias.chunk(3)
            names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
            q, k, v = (self._linear(x, n, b) for x, n, b in zip((query, key, value), names, biases, strict=True))
            return q, k, v
        if key is value and query is key:
            return _unpack(self._linear(query, "in_proj_weight", bias), 3)
        size = query.size(-1)
        parts = [size, 2 * size] if key is value else [size, size, size]
        inputs = (query, key) if key is value else (query, key, value)
        whole = self.operand("in_proj_weight")
        biases = [None] * len(parts) if bias is None else bias.split(parts)
        projected = [
            kernels.linear(x, Operand(W, (B,), transport=whole.transport), b)
            for x, W, b, B in zip(inputs, whole.weight.split(parts), biases, whole.B.split(parts), strict=True)
        ]
        return (projected[0], *_unpack(projected[1], 2)) if key is value else tuple(projected)  # pyright: ignore[reportReturnType]

    def _linear(self, x: torch.Tensor, name: str, bias: torch.Tensor | None) -> torch.Tensor:
        return kernels.linear(x, self.operand(name), bias)


def _unpack(projected: torch.Tensor, parts: int) -> Any:
    size = projected.size(-1) // parts
    stacked = projected.unflatten(-1, (parts, size)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
    return tuple(stacked[i] for i in range(parts))


def _time_first(query: Any, key: Any, value: Any, batched: bool, batch_first: bool) -> Triple:
    """(length, batch, channels) for all three, keeping which of them are one tensor."""

    def move(x: torch.Tensor) -> torch.Tensor:
        if not batched:
            return x.unsqueeze(1)
        return x.transpose(1, 0) if batch_first else x

    q = move(query)
    k = q if key is query else move(key)
    return q, k, k if value is key else q if value is query else move(value)


def _masks(
    query: torch.Tensor,
    key_padding_mask: torch.Tensor | None,
    attn_mask: torch.Tensor | None,
    is_causal: bool,
    need_weights: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None, bool]:
    """Both masks as additive ones, and whether attention may rely on the causal hint alone."""
    padding = _TORCH._canonical_mask(
        mask=key_padding_mask,
        mask_name="key_padding_mask",
        other_type=_TORCH._none_or_dtype(attn_mask),
        other_name="attn_mask",
        target_type=query.dtype,
    )
    if is_causal and attn_mask is None:
        raise RuntimeError("need attn_mask if specifying the is_causal hint")
    if is_causal and padding is None and not need_weights:
        return padding, None, True
    mask = _TORCH._canonical_mask(
        mask=attn_mask,
        mask_name="attn_mask",
        other_type=None,
        other_name="",
        target_type=query.dtype,
        check_other=False,
    )
    return padding, mask, is_causal and padding is None


def _attend(
    mha: Any,
    projected: Triple,
    padding: torch.Tensor | None,
    mask: torch.Tensor | None,
    is_causal: bool,
    need_weights: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scaled dot-product attention, (length · batch, channels), and its weights (batch, heads, length, source)."""
    q, k, v = projected
    length, count, size = q.shape
    heads, rows = mha.num_heads, count * mha.num_heads
    head_dim = size // heads
    if mask is not None and mask.dim() == 2:
        mask = mask.unsqueeze(0)
    if mha.bias_k is not None:
        k = torch.cat([k, mha.bias_k.repeat(1, count, 1)])
        v = torch.cat([v, mha.bias_v.repeat(1, count, 1)])
        mask, padding = _widen(mask), _widen(padding)
    q, k, v = (x.reshape(x.shape[0], rows, head_dim).transpose(0, 1) for x in (q, k, v))
    if mha.add_zero_attn:
        k = torch.cat([k, k.new_zeros(rows, 1, head_dim)], dim=1)
        v = torch.cat([v, v.new_zeros(rows, 1, head_dim)], dim=1)
        mask, padding = _widen(mask), _widen(padding)
    source = k.size(1)
    if padding is not None:
        padding = padding.view(count, 1, 1, source).expand(-1, heads, -1, -1).reshape(rows, 1, source)
        mask = padding if mask is None else mask + padding
    dropout = mha.dropout if mha.training else 0.0
    if need_weights:
        scaled = q * math.sqrt(1.0 / float(head_dim))
        score = (
            torch.bmm(scaled, k.transpose(-2, -1)) if mask is None else torch.baddbmm(mask, scaled, k.transpose(-2, -1))
        )
        weights = F.softmax(score, dim=-1)
        if dropout > 0.0:
            weights = F.dropout(weights, p=dropout)
        mixed = torch.bmm(weights, v).transpose(0, 1).reshape(length * count, size)
        return mixed, weights.view(count, heads, length, source)
    if mask is not None:
        single = mask.size(0) == 1 and mask.dim() == 3
        mask = mask.unsqueeze(0) if single else mask.view(count, heads, -1, source)
    q, k, v = (x.reshape(count, heads, x.shape[1], head_dim) for x in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
    return mixed.permute(2, 0, 1, 3).reshape(count * length, size), None


def _widen(mask: torch.Tensor | None) -> torch.Tensor | None:
    return None if mask is None else F.pad(mask, (0, 1))
