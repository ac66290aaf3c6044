"""An example fixes the path through the code, not the laws: inputs of other sizes have the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lawful
from lawful.checking import lawcheck
from lawful.conservation.base import tensors
from lawful.conservation.derive import laws_of
from lawful.errors import SettingError


class Net(nn.Module):
    """a, then ``between``, then b, a rectifier and c."""

    def __init__(self, between, width=4) -> None:
        super().__init__()
        self.between = between
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(width, 5), nn.Linear(5, 2)

    def forward(self, x, *others):
        return self.c(self.b(self.between(self.a(x), *others)).relu())


class Normed(nn.Module):
    """a along axis 1, then ``between`` and a norm."""

    def __init__(self, between, norm) -> None:
        super().__init__()
        self.between, self.norm = between, norm
        self.a, self.b = nn.Conv1d(3, 4, 1), nn.Conv1d(4, 2, 1)

    def forward(self, x, *others):
        return self.b(self.norm(self.between(self.a(x), *others)).relu())


def to_four(h: torch.Tensor) -> torch.Tensor:
    """Pads the second axis to a multiple of 4."""
    return F.pad(h, (0, 0, 0, -h.shape[1] % 4))


def into_zeros(h: torch.Tensor) -> torch.Tensor:
    room = h.new_zeros(h.shape[0], h.shape[1] + -h.shape[1] % 4, h.shape[2])
    room[:, : h.shape[1]] = h
    return room


def joined(h: torch.Tensor) -> torch.Tensor:
    return torch.cat([h, h.new_zeros(h.shape[0], -h.shape[1] % 4, h.shape[2])], dim=1)


PADDINGS = [to_four, into_zeros, joined]


def named(model, *inputs):
    return {(law.kind, law.name) for law in laws_of(model, inputs)}


def same_laws(model, small, large):
    """The laws of an example, which are those of another, and hold for both."""
    found = named(model, *small)
    assert found == named(model, *large)
    for inputs in (small, large):
        assert lawcheck(model, inputs).ok
    return found


def fa(model):
    lawful.attach(model.double(), lawful.FeedbackAlignment())
    return model


@pytest.mark.parametrize("pad", PADDINGS)
def test_no_bias_law_through_a_padding_that_adds_nothing_to_the_example(pad):
    small, large = (torch.randn(2, length, 3) for length in (4, 5))
    found = same_laws(fa(Net(pad)), [small.double()], [large.double()])
    assert ("neuron", "a") in found and ("neuron", "b") in found and ("bias", "a") not in found


@pytest.mark.parametrize("pad", PADDINGS)
def test_a_mean_over_what_may_be_padded_carries_no_bias_law(pad):
    small, large = (torch.randn(2, length, 3).double() for length in (4, 5))
    same_laws(fa(Net(lambda h: pad(h).mean(1))), [small], [large])


@pytest.mark.parametrize("pad", PADDINGS)
def test_a_sum_with_what_may_be_padded(pad):
    """δ of the padded summand is that of the sum, but not at all of its positions."""
    model = fa(Net(lambda h: pad(h) + h.sum(1, keepdim=True)))
    assert ("bias", "a") not in named(model, torch.randn(2, 4, 3).double())
    assert lawcheck(model, torch.randn(2, 5, 3).double()).ok


@pytest.mark.parametrize("pad", PADDINGS)
@pytest.mark.parametrize(
    "then", [lambda h: h, torch.clone, lambda h: 2 * h, lambda h: h + h, nn.AvgPool1d(1)], ids=range(5)
)
def test_no_shift_law_of_a_norm_over_what_may_be_padded(pad, then):
    def across(h):
        return then(pad(h.mT).mT)

    small, large = (torch.randn(2, 3, length).double() for length in (4, 5))
    found = same_laws(Normed(across, nn.BatchNorm1d(4)).double(), [small], [large])
    assert "shift" not in {kind for kind, _ in found}
    assert ("shift", "a") in named(Normed(then, nn.BatchNorm1d(4)).double(), small)


@pytest.mark.parametrize("pad", PADDINGS)
def test_a_layer_norm_sees_no_shift_where_all_of_its_channels_are_padded_alike(pad):
    def normed(h):
        return F.layer_norm(torch.clone(pad(h)), (4,))

    small, large = (torch.randn(2, length, 3).double() for length in (4, 5))
    assert same_laws(Net(normed).double(), [small], [large]) >= {("scale", "a"), ("shift", "a")}


def test_a_layer_norm_sees_a_shift_of_channels_that_are_padded_apart():
    def normed(h):
        more = -h.shape[1] % 4
        early, late = F.pad(h[..., :2], (0, 0, more, 0)), F.pad(h[..., 2:], (0, 0, 0, more))
        return F.layer_norm(torch.cat([early, late], -1), (4,))

    small, large = (torch.randn(2, length, 3).double() for length in (4, 5))
    assert ("shift", "a") not in named(Net(normed).double(), small)
    assert lawcheck(Net(normed).double(), large).ok


def test_a_layer_norm_over_positions_too_of_one_position():
    model = Net(lambda h: F.layer_norm(h, h.shape[1:])).double()
    same_laws(model, [torch.randn(2, 1, 3).double()], [torch.randn(2, 4, 3).double()])


@pytest.mark.parametrize("pad", PADDINGS)
def test_a_direct_rule_has_no_bias_law_behind_a_padding(pad):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 4)

        def forward(self, x):
            return pad(self.a(x))

    laws = []
    for length in (4, 5):
        torch.manual_seed(0)
        model = nn.Sequential(Block(), nn.Linear(4, 2)).double()
        lawful.attach(model, lawful.DirectFeedbackAlignment(taps=["0"], output="1"))
        x = torch.randn(2, length, 3).double()
        laws.append(named(model, x))
        assert lawcheck(model, x).ok
    assert laws[0] == laws[1] and ("bias", "0.a") not in laws[0]


def test_channels_that_are_added_are_no_padding():
    x = torch.randn(2, 4, 3).double()
    shortcut = Normed(lambda h, x: F.pad(h, (0, 0, 1, 1)) + shortcut.d(x), nn.BatchNorm1d(6))
    shortcut.b, shortcut.d = nn.Conv1d(6, 2, 1), nn.Conv1d(3, 6, 1)
    assert ("shift", "d") in named(shortcut.double(), x.mT, x.mT)

    def woven(h):
        room = torch.zeros_like(h)
        room[..., 0::2] = h[..., 0::2]
        room[..., 1::2] = h[..., 1::2]
        return room

    assert ("neuron", "a") in named(fa(Net(woven)), x)
    assert ("bias", "a") in named(fa(Net(lambda h: torch.cat([h, h[:, :0]], 1))), x)


def test_a_sum_is_not_padded_because_a_summand_is():
    class Sum(Net):
        def __init__(self):
            super().__init__(None)
            self.d = nn.Linear(3, 4)

        def forward(self, x):
            return self.c(self.b(self.d(x[:, :4]) + to_four(self.a(x))).relu())

    found = named(fa(Sum()), torch.randn(2, 4, 3).double())
    assert ("bias", "d") in found and ("bias", "a") not in found


def test_a_shift_of_a_padded_summand_is_seen_by_a_norm_of_the_sum():
    small, large = (torch.randn(2, 3, length).double() for length in (4, 5))

    def summed(h, x):
        return model.d(F.pad(x, (0, -x.shape[2] % 4))) + to_four(h.mT).mT

    model = Normed(summed, nn.BatchNorm1d(4)).double()
    model.d = nn.Conv1d(3, 4, 1).double()
    shifts = laws_of(model, (small, small)).of_kind("shift")
    assert {law.name for law in shifts} == {"d"}
    model(large, large).square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(float(law.rate(tensors(model), gradients).abs().max()) < 1e-10 for law in shifts)
    assert float(gradients["a.bias"].abs().max()) > 1e-3  # which the norm would not see without the padding


def write(index, value):
    def between(h):
        h = h.clone()
        h[index(h)] = value
        return h

    return between


def nothing(h):
    return torch.zeros(h.shape[:2], dtype=torch.bool)


def some(h):
    return torch.arange(h.shape[1]).expand(h.shape[:2]) == 1


def beyond(h):
    return (slice(None), slice(4, None))


@pytest.mark.parametrize(("empty", "full"), [(nothing, some), (beyond, beyond)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_write_that_meets_nothing_in_the_example(empty, full, value):
    torch.manual_seed(0)
    small, large = torch.randn(2, 4, 3).double(), torch.randn(2, 5, 3).double()
    found = named(fa(Net(write(empty, value))), small)
    assert ("bias", "a") not in found and (("neuron", "a") in found) == (value == 0.0)
    model = fa(Net(write(full, value)))
    assert named(model, large) <= found | {("matrix", "a")}
    assert lawcheck(model, large).ok


@pytest.mark.parametrize("other", [lambda h: 0.0, lambda h: h.square()])
def test_a_mask_of_every_element_writes_to_each_channel_at_places_of_its_own(other):
    mask = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5

    def over(h):
        h, new = h.clone(), other(h)
        h[mask] = new[mask] if isinstance(new, torch.Tensor) else new
        return h

    def into(h):
        room = torch.zeros_like(h)
        room[mask] = h[mask]
        return room

    x = torch.randn(2, 4, 3).double()
    for between in (over, into):
        assert lawcheck(Net(between).double(), x).ok


def test_a_group_norm_of_one_position_takes_positions_together():
    model = Normed(nn.AvgPool1d(3, 1, 1), nn.GroupNorm(2, 4)).double()  # its pooling counts padding
    same_laws(model, [torch.randn(2, 3, 1).double()], [torch.randn(2, 3, 4).double()])


@pytest.mark.parametrize("by", [torch.mul, torch.div])
def test_a_factor_of_every_example_is_none_of_a_batch_of_one(by):
    model = Normed(by, nn.BatchNorm1d(4)).double()
    small, large = ([torch.randn(n, 3, 5).double(), 1 + torch.rand(n, 1, 1).double()] for n in (1, 4))
    assert "shift" not in {kind for kind, _ in same_laws(model, small, large)}
    for number in (2.0, torch.tensor(2.0), torch.full((1,), 2.0)):
        assert ("shift", "a") in named(model, small[0], number)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o, self.c = (nn.Linear(4, 4) for _ in range(5))

    def forward(self, x, mask=None):
        return self.c(self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), attn_mask=mask)))


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x, mask=None, keys=None):
        return self.c(self.a(x, x, x, attn_mask=mask, key_padding_mask=keys, need_weights=False)[0])


CAUSAL = torch.ones(3, 3, dtype=torch.bool).tril()
HOLE = CAUSAL & torch.tensor([[True], [False], [True]])
FIRST = torch.tensor([[False, True, True], [False, False, True]])
"""Keys to leave out."""
BOTH = torch.tensor([[True, False, False], [False, False, False]])
"""With CAUSAL the first query of the first example sees none."""


def as_numbers(seen: torch.Tensor) -> torch.Tensor:
    return torch.zeros(seen.shape).double().masked_fill(~seen, -torch.inf)


@pytest.mark.parametrize(
    ("model", "masks", "whole"),
    [
        (Attention, (CAUSAL,), True),
        (Attention, (HOLE,), False),
        (Attention, (as_numbers(CAUSAL),), True),
        (Attention, (as_numbers(HOLE),), False),
        (Heads, (~CAUSAL,), True),
        (Heads, (~HOLE,), False),
        (Heads, (None, FIRST), True),
        (Heads, (~CAUSAL, FIRST), True),
        (Heads, (~CAUSAL, BOTH), False),
        (Heads, ((~CAUSAL).expand(4, 3, 3), BOTH), False),
        (Heads, ((~CAUSAL).expand(4, 3, 3), FIRST), True),
        (Heads, (None, torch.tensor([[True] * 3, [False] * 3])), False),
    ],
)
def test_a_query_that_sees_no_key_ends_the_bias_law_of_the_values(model, masks, whole):
    """torch gives it zeros, so the weights of a mixture do not always sum to one."""
    net = fa(model())
    inputs = (torch.randn(2, 3, 4).double(), *masks)
    assert lawcheck(net, inputs).ok
    values = {law.name for law in laws_of(net, inputs).of_kind("bias")} & {"v", "a.value"}
    assert bool(values) == whole


@pytest.mark.parametrize(
    "write", [lambda view, h: view.add_(h), lambda view, h: view.copy_(h), lambda view, h: view.sub_(h)]
)
def test_zeros_that_are_written_to_through_a_view_are_zeros_no_more(write):
    def between(h):
        room = h.new_zeros(h.shape[0], 6)
        write(room[:, :4], h)
        return room.tanh()

    assert lawcheck(Net(between, width=6).double(), torch.randn(5, 3).double()).ok


@pytest.mark.parametrize("inputs", [(torch.randn(2, 3), torch.randn(2, 3)), ({"x": torch.randn(2, 3)},), (5,)])
def test_inputs_of_a_wrong_kind(inputs):
    for of in (laws_of, lawcheck):
        with pytest.raises(SettingError, match="a tensor or a tuple of inputs"):
            of(nn.Linear(3, 2), *inputs)


def test_a_constant_that_was_made_in_inference_mode():
    with torch.inference_mode():
        place = torch.randn(4).double()
    assert lawcheck(Net(lambda h: (h + place).relu()).double(), torch.randn(5, 3).double()).ok
