"""How far the errors and gradients of a rule agree with backpropagation's, layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from lawful.attachment.attachment import attachment_of
from lawful.measures.angles import cosine


@dataclass(frozen=True)
class Agreement:
    """Cosines between a rule's signals and backpropagation's on one batch: 1 agrees, 0 is unrelated.

    Attributes:
        deltas: module -> cos(δ, δ_bp), δ = ∂loss/∂(its output) as each sees it.
        gradients: parameter -> cos(g, g_bp).
    """

    deltas: dict[str, float]
    gradients: dict[str, float]


def agreement(model: nn.Module, loss: Callable[[nn.Module], torch.Tensor]) -> Agreement:
    """Both cosines for every layer, on one batch, in eval mode; the model is left as it is.

    Args:
        model: an attached model.
        loss: the loss of a model, ``lambda net: criterion(net(x), y)``.

    Returns:
        Layers that no error reaches under either rule are left out.

    Raises:
        AttachmentError: the model carries no rule.

    >>> import lawful
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> _ = lawful.attach(net, lawful.Backprop())
    >>> found = agreement(net, lambda m: m(torch.ones(4, 2)).square().sum())
    >>> round(found.deltas["0"], 4), round(found.gradients["2.weight"], 4)
    (1.0, 1.0)
    """
    attachment_of(model)
    fed, true = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    attachment_of(true).remove()
    (delta, g), (delta_bp, g_bp) = (_signals(net, loss) for net in (fed, true))
    return Agreement(
        {n: cosine(delta[n], delta_bp[n]) for n, _ in model.named_modules() if n in delta and n in delta_bp},
        {name: cosine(g[name], g_bp[name]) for name in g if name in g_bp},
    )


def _signals(
    net: nn.Module, loss: Callable[[nn.Module], torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """δ at the outputs of every module that owns parameters, summed over its uses in place, and all gradients."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, error: torch.Tensor) -> None:
        same = name in found and found[name].shape == error.shape
        found[name] = found[name] + error.detach() if same else error.detach()

    def watch(name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        for y in tree_leaves(output)[:1]:
            if isinstance(y, torch.Tensor) and y.requires_grad:
                y.register_hook(partial(keep, name))

    for name, module in net.named_modules():
        if module._parameters:
            module.register_forward_hook(partial(watch, name))
    net.zero_grad(set_to_none=True)
    with torch.enable_grad():
        loss(net).backward()
    return found, {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
