"""Lines of parameters against the layers themselves: which input channel moves through which element."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lawful.affine import maps
from lawful.affine.slices import row_blocks

LAYERS = {
    "linear": (lambda i, o, g: nn.Linear(i, o), lambda m: maps.linear("w", tuple(m.weight.shape), "b"), (), -1),
    "conv": (
        lambda i, o, g: nn.Conv2d(i, o, 3, groups=g),
        lambda m: maps.conv("w", tuple(m.weight.shape), "b", m.groups),
        (5, 5),
        1,
    ),
    "transposed": (
        lambda i, o, g: nn.ConvTranspose1d(i, o, 3, groups=g),
        lambda m: maps.transposed_conv("w", tuple(m.weight.shape), "b", m.groups),
        (5,),
        1,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=15, deadline=None)
@given(groups=st.sampled_from([1, 2, 3]), i=st.integers(1, 3), o=st.integers(1, 3))
def test_a_line_is_what_the_output_or_input_channel_depends_on(name, groups, i, o):
    make, describe, size, axis = LAYERS[name]
    layer = make(groups * i, groups * o, groups).double()
    amap = describe(layer)
    x = torch.randn(2, groups * i, *size, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    assert amap.channels == groups * o
    (gradient,) = torch.autograd.grad(y.select(axis, 0).sum(), layer.weight, retain_graph=True)
    touched = amap.out.sum((gradient != 0).double())
    assert int((touched > 0).sum()) == 1 and touched[0] > 0
    # Euler: the sum of w · ∂f/∂w over in-line j is x_j · ∂f/∂x_j, for any error signal
    signal = torch.randn_like(y)
    W, X = torch.autograd.grad((y * signal).sum(), (layer.weight, x))
    by_line = amap.into.sum(layer.weight.detach() * W)
    by_channel = (x.detach() * X).movedim(axis, 0).reshape(groups * i, -1).sum(1)
    torch.testing.assert_close(by_line, by_channel, rtol=1e-10, atol=1e-12)
    W = layer.weight.detach()
    for slices in (amap.into, amap.out):  # in blocks of one quantum of rows, and of everything
        for size in (1, W.numel()):
            cuts = list(row_blocks([amap.into, amap.out], W.shape, size))
            blocks = [(rows(W), rows(W.cos())) for rows in cuts]
            with patch("lawful.affine.slices.LARGE", 1):
                by_numpy = [slices.dot_block(w, v, len(W)) for w, v in blocks]
            for pieces, reference in (
                ([slices.sum_block(w, len(W)) for w, _ in blocks], W),
                ([slices.dot_block(w, v, len(W)) for w, v in blocks], W * W.cos()),
                (by_numpy, W * W.cos()),
                ([slices.dot_block(w, w, len(W)) for w, _ in blocks], W * W),
            ):
                torch.testing.assert_close(slices.join(pieces), slices.sum(reference), rtol=1e-12, atol=1e-14)
    assert amap.into.lines(layer.weight).shape[0] == amap.into.count


def test_packed_rows_do_not_overlap():
    q, k = (maps.linear("w", (9, 2), "b", (i, i + 3)) for i in (0, 3))
    both = maps.linear("w", (9, 2), "b")
    assert not q.out.overlaps(k.out) and q.out.overlaps(both.out) and both.out.overlaps(k.out)
    W = torch.arange(18.0).reshape(9, 2)
    assert torch.equal(k.out.lines(W), W[3:6])
    assert torch.equal(k.into.sum(W), W[3:6].sum(0))
