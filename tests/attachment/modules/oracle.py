"""An independent oracle: autograd on the plain model, with every saved view of W handed back as the same view of B."""

from __future__ import annotations

import contextlib
import copy

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import lawful
from lawful.attachment.attachment import Attachment


@contextlib.contextmanager
def weights_saved_as(feedback: dict[str, torch.Tensor], model: nn.Module):
    """Where autograd saved W (or any view of its storage) for the backward pass, let it read B."""
    names = dict(model.named_parameters(remove_duplicate=False))
    swaps = {names[name].untyped_storage().data_ptr(): (names[name], B) for name, B in feedback.items()}

    def pack(saved: torch.Tensor) -> torch.Tensor:
        weight, B = swaps.get(saved.untyped_storage().data_ptr(), (None, None))
        if weight is None:
            return saved
        assert weight.is_contiguous() and weight.storage_offset() == 0
        return B.contiguous().as_strided(saved.size(), saved.stride(), saved.storage_offset())

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
        yield


def tensors(output) -> list[torch.Tensor]:
    """Every floating tensor of a nested output."""
    flat = torch.utils._pytree.tree_leaves(dict(output) if isinstance(output, dict) else output)
    return [t for t in flat if isinstance(t, torch.Tensor) and t.requires_grad]


def gradients(model: nn.Module, *args, **kwargs) -> dict[str, torch.Tensor]:
    """Gradients of a loss whose output error varies, for all parameters and all floating inputs."""
    model.zero_grad()
    given = [a.data if isinstance(a, PackedSequence) else a for a in args]
    inputs = {f"input {i}": a for i, a in enumerate(given) if isinstance(a, torch.Tensor) and a.is_floating_point()}
    for x in inputs.values():
        x.grad = None
        x.requires_grad_()
    sum((t**3 / 3 + t).sum() for t in tensors(model(*args, **kwargs))).backward()
    found = {n: p.grad for n, p in model.named_parameters()} | {n: x.grad for n, x in inputs.items()}
    return {n: g.clone() for n, g in found.items() if g is not None}


def check_against_oracle(
    model: nn.Module, *args, tolerance: float = 1e-10, bitwise: bool = True, upstream: bool = True, **kwargs
) -> Attachment:
    """All that must hold of an attached model, in float64; the model stays attached."""
    plain = copy.deepcopy(model)
    attachment = lawful.attach(model, lawful.FeedbackAlignment(seed=7))
    names = {name for name, _ in model.named_parameters()}
    assert names <= set(attachment.coverage), "every parameter has its sentence"
    assert not any("NOT COVERED" in what for what in attachment.coverage.values())
    outputs = [tensors(m(*args, **kwargs)) for m in (plain, model)]
    for theirs, ours in zip(*outputs, strict=True):
        if bitwise:
            assert torch.equal(ours, theirs), "the forward pass must not change"
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    with weights_saved_as({n: B.clone() for n, B in attachment.feedback.items()}, plain):
        expected = gradients(plain, *args, **kwargs)
    fed_back = gradients(model, *args, **kwargs)
    assert_same(fed_back, expected, tolerance)
    if upstream:
        _check_each_B_matters(model, attachment, fed_back, args, kwargs)
    saved = {name: B.clone() for name, B in attachment.feedback.items()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, B in attachment.feedback.items():
        B.copy_(parameters[name].detach())
    assert_same(gradients(model, *args, **kwargs), gradients(plain, *args, **kwargs), tolerance)
    for name, B in attachment.feedback.items():
        B.copy_(saved[name])
    return attachment


def _check_each_B_matters(model, attachment, before, args, kwargs) -> None:
    """Changing any B changes a gradient other than its own weight's, unless nothing lies upstream of it."""
    for name, B in attachment.feedback.items():
        kept = B.clone()
        B.add_(0.1 * torch.randn(B.shape, generator=torch.Generator().manual_seed(0), dtype=B.dtype))
        after = gradients(model, *args, **kwargs)
        B.copy_(kept)
        assert any(not torch.equal(after[n], g) for n, g in before.items() if n != name), f"{name}'s B is never read"


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """The same gradients, each to ``tolerance`` of its own size."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        error = (got[name] - value).abs().max().item()
        assert error <= tolerance * max(1.0, value.abs().max().item()), f"{name}: off by {error:.1e}"
