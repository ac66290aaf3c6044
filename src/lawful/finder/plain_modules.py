"""What would make a PyTorch module another function than its layers say: refused by name before it is read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import torch
from torch.nn.utils import parametrize

from lawful.errors import SettingError

_HOOKS: Final = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
    "_backward_pre_hooks": "backward pre-hook",
    "_backward_hooks": "backward hook",
}


def refuse_hidden_work(module: torch.nn.Module) -> None:
    """Hooks (weight_norm's too), replaced forwards, computed, frozen and empty weights, anywhere in the module.

    The hooks of an attached rule are none: they do not change the function.

    Raises:
        SettingError: naming the place, and what is there.
    """
    spans = sorted((*_span(p), name) for name, p in module.named_parameters() if _has_memory(p))
    for (_, end, one), (start, _, other) in pairwise(spans):
        if start < end:
            raise SettingError(
                f"find_laws: {other} and {one} share memory, so one moves with the other; tie layers by giving both "
                "the same parameter"
            )
    for path, part in module.named_modules():
        for what in _hidden(part):
            where = f"{path} ({type(part).__name__})" if path else type(part).__name__
            raise SettingError(f"find_laws: {where} {what}")


def _has_memory(p: torch.Tensor) -> bool:
    lazy = torch.nn.parameter.is_lazy(p)
    return not lazy and p.layout is torch.strided and p.device.type != "meta" and p.numel() > 0


def _span(p: torch.Tensor) -> tuple[int, int]:
    """The addresses of its first byte, and after its last."""
    last = sum((n - 1) * step for n, step in zip(p.shape, p.stride(), strict=True))
    return p.data_ptr(), p.data_ptr() + (last + 1) * p.element_size()


def _hidden(part: torch.nn.Module) -> Iterator[str]:
    if any(map(torch.nn.parameter.is_lazy, part.parameters(recurse=False))):
        yield "has no shape yet; run the module once on an input"
    if parametrize.is_parametrized(part):
        names = ", ".join(sorted(part.parametrizations))  # pyright: ignore[reportArgumentType, reportCallIssue]
        yield f"has a parametrization of its {names}; it is learned through other numbers than it seems"
    for registry, what in _HOOKS.items():
        for hook in getattr(part, registry).values():
            if not str(getattr(hook, "__module__", "")).startswith("lawful."):
                name = getattr(hook, "__name__", type(hook).__name__)
                yield f"has a {what} ({name}), which may change what it computes or learns; remove it"
    if "forward" in vars(part):
        yield "has had its forward replaced"
    for name in ("weight", "bias"):
        tensor = getattr(part, name, None)
        if isinstance(tensor, torch.Tensor) and name not in part._parameters:
            yield f"has a computed {name}, no parameter"
    for name, parameter in part.named_parameters(recurse=False):
        if parameter.is_complex():
            yield f"has a complex {name} ({parameter.dtype}); laws are counted for real numbers"
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            yield f"has a hook on its {name}, which may change what it learns; remove it"
        if parameter.numel() == 0:
            yield f"has an empty {name} of shape {tuple(parameter.shape)}; a layer needs an input and an output"
        if not parameter.requires_grad:
            yield f"has a frozen {name} (requires_grad is False); laws are counted where all weights learn"
