"""The explicit form of feedback, y = f(x₀, W) + f(x − x₀, B) at x₀ = x held fixed: an independent reference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import nn
from torch.autograd.function import BackwardCFunction
from torch.utils._pytree import tree_leaves

from lawful.attachment.base import attachment_or_none
from lawful.attachment.direct_graph import ancestors
from lawful.conservation.potential import SQUARE, Potential
from lawful.rules.base import Rule

_AFFINE: Final = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def explicit_reference(
    twin: nn.Module, potentials: Callable[[str], Potential]
) -> tuple[nn.Module | None, tuple[str, ...]]:
    """A copy under backpropagation whose affine leaves carry the explicit form.

    Returns:
        The copy, or None and the names of the weights that are in no such leaf.
    """
    plain = copy.deepcopy(twin)
    attachment = attachment_or_none(plain)
    if attachment is not None:
        attachment.remove()
    for module in plain.modules():  # whatever hooks do to errors is not part of the rule
        module._backward_hooks.clear()
        module._backward_pre_hooks.clear()
    fed_back = {name for name, _ in plain.named_parameters(remove_duplicate=False) if potentials(name) is not SQUARE}
    for name, module in list(plain.named_modules()):
        weight = f"{name}.weight" if name else "weight"
        stock = next((cls for cls in _AFFINE if isinstance(module, cls)), None)
        if stock is None or weight not in fed_back or not _computes(stock, module):
            continue
        fed_back.discard(weight)
        module.forward = partial(_explicit, module, stock, potentials(weight))  # type: ignore[method-assign]
    return (None, tuple(sorted(fed_back))) if fed_back else (plain, ())


def shared_derivatives(reference: nn.Module, outputs: Any) -> dict[str, list[str]]:
    """Parameters behind a derivative of the model's own, not torch's: there no reference is independent.

    Args:
        reference: what made the ``outputs``.
        outputs: with their graphs.

    Returns:
        Name of the autograd Function -> the names of the parameters that its error goes on to.
    """
    names = {id(p): name for name, p in reference.named_parameters()}
    graphs = [y.grad_fn for y in tree_leaves(outputs) if isinstance(y, torch.Tensor) and y.grad_fn is not None]
    found: dict[str, list[str]] = {}
    for node in ancestors(graphs):
        if isinstance(node, BackwardCFunction) and not isinstance(node, _OwnTransport._backward_cls):  # pyright: ignore[reportAttributeAccessIssue]
            behind = [names[id(n.variable)] for n in ancestors([node]) if id(getattr(n, "variable", None)) in names]
            function = type(node).__name__.removesuffix("Backward")
            found[function] = sorted({*found.get(function, ()), *behind})
    return found


@torch.no_grad()
def _computes(stock: type[nn.Module], module: Any) -> bool:
    """Whether a layer with a forward pass of its own computes what the stock layer does."""
    if type(module).forward is stock.forward:  # type: ignore[attr-defined]
        return True
    kernel = getattr(module, "kernel_size", ())
    inputs = module.in_channels if kernel else module.weight.shape[1]
    sizes = [d * (k - 1) + 3 for k, d in zip(kernel, module.dilation, strict=True)] if kernel else []
    x = torch.randn(2, inputs, *sizes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got, want = module(x.to(module.weight)), stock.forward(module, x.to(module.weight))
    return got.shape == want.shape and bool((got - want).abs().max() <= 1e-9 * want.abs().max())


def _explicit(module: nn.Module, stock: type[nn.Module], potential: Potential, x: torch.Tensor) -> torch.Tensor:
    weight: Any = module.weight
    forward = partial(_with_weight, module, stock)
    B = potential.feedback(weight.detach())
    if not potential.linear:
        return _OwnTransport.apply(forward(weight, module.bias, x.detach()), x, B, potential.rule, forward)
    echo = forward(B, None, x)
    return forward(weight, module.bias, x.detach()) + echo - echo.detach()


class _OwnTransport(torch.autograd.Function):
    """The output itself, whose error reaches x by the rule's own transport; the adjoint is taken by autograd."""

    @staticmethod
    def forward(
        ctx: Any, out: torch.Tensor, x: torch.Tensor, B: torch.Tensor, rule: Rule, forward: Any
    ) -> torch.Tensor:
        ctx.shape, ctx.B, ctx.rule, ctx.layer = x.shape, B, rule, forward
        return out.clone()

    @staticmethod
    def backward(ctx: Any, *deltas: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        def adjoint(delta: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                x = torch.zeros(ctx.shape, dtype=B.dtype, requires_grad=True)
                return torch.autograd.grad(ctx.layer(B, None, x), x, delta)[0]

        return deltas[0], ctx.rule.transport(deltas[0], ctx.B, adjoint), None, None, None


def _with_weight(module: nn.Module, stock: type[nn.Module], weight: Any, bias: Any, x: torch.Tensor) -> torch.Tensor:
    """The stock layer's forward pass with other weights in it."""
    held = dict(module._parameters)
    module._parameters.update({"weight": weight, "bias": bias})
    try:
        return stock.forward(module, x)
    finally:
        module._parameters.update(held)
