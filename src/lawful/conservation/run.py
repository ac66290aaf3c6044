"""Runs a model under a trace: which modules are followed as a whole, and which from the inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from lawful.affine.maps import is_hf_conv1d
from lawful.conservation import layers, norms
from lawful.conservation.trace import Trace
from lawful.errors import SettingError


def inputs_of(model: nn.Module, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword inputs of a model as its caller gave them; of no inputs, an example.

    Raises:
        SettingError: ``args`` is no tensor, tuple or list, or ``kwargs`` no mapping; none can be guessed.
    """
    if not isinstance(args, torch.Tensor | tuple | list) or not isinstance(kwargs, Mapping | None):
        raise SettingError(
            f"expected a tensor or a tuple of inputs, and a mapping of keyword inputs; got {type(args).__name__} and "
            f"{type(kwargs).__name__}: write (model, (x, y), {{'mask': m}})"
        )
    inputs = (args,) if isinstance(args, torch.Tensor) else tuple(args)
    if not inputs and not kwargs:
        inputs = (example_input(model),)
    return inputs, dict(kwargs or {})


def example_input(model: nn.Module) -> torch.Tensor:
    """A random input for a model whose first layer says what it reads."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight
            return torch.randn(2, module.in_features, dtype=weight.dtype, device=weight.device)
        if isinstance(module, nn.Embedding):
            tokens = [n for n in range(module.num_embeddings) if n != module.padding_idx] or [0]
            return torch.tensor(tokens)[torch.randint(len(tokens), (2, 3))].to(module.weight.device)
        if next(module.children(), None) is None and next(module.parameters(), None) is not None:
            break
    raise SettingError(
        f"laws_of: cannot guess an input for {type(model).__name__}; expected args, for example "
        "laws_of(model, torch.randn(1, 3, 32, 32))"
    )


@contextmanager
def learning(model: nn.Module) -> Iterator[None]:
    """Every parameter counts as one that learns inside, frozen ones too."""
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


@contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Run the model inside: its buffers and the random state come out as they went in."""
    saved = {name: b.detach().clone() for name, b in model.named_buffers()}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        yield
    with torch.no_grad():
        for name, b in model.named_buffers():
            if name in saved:  # a direct rule adds its own at the first run
                b.copy_(saved[name])


def follow(trace: Trace, model: nn.Module, args: tuple[Any, ...], kwargs: dict) -> Any:
    """Run the model under the trace, and leave it as it was."""
    with undone(model), _leaves_watched(trace, model), trace:
        return model(*args, **kwargs)


def _handler(module: nn.Module) -> layers.ModuleHandler | None:
    """What a leaf does to channels. A class of the user's own counts as the layer whose numbers it computes."""
    if is_hf_conv1d(module):
        return layers.HF_CONV1D
    for cls, handler in layers.MODULES.items():
        if isinstance(module, cls):
            stock = type(module).__module__.startswith(("torch.nn", "lawful.attachment"))
            return handler if stock else layers.verified(cls, handler)
    weight = module._parameters.get("weight")
    lone = not module._modules and not type(module).__module__.startswith("torch.nn")
    if lone and weight is not None and weight.dim() == 2:
        return layers.verified(nn.Linear, layers.MODULES[nn.Linear])
    return None


@contextmanager
def _leaves_watched(trace: Trace, model: nn.Module) -> Iterator[None]:
    handles, chosen = [], []
    for name, module in model.named_modules():
        handles.append(
            module.register_forward_pre_hook(_enter(trace, name, _handler(module), chosen), with_kwargs=True)
        )
        # first, so that the hooks of others are followed like any code behind the module
        handles.append(module.register_forward_hook(_leave(trace, chosen), with_kwargs=True, prepend=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


Chosen = list[layers.ModuleHandler | None]
"""What the modules that are running do to channels; None for those whose inside is followed."""


def _enter(trace: Trace, name: str, handler: layers.ModuleHandler | None, chosen: Chosen) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict) -> None:
        trace.path.append(name)
        trace.turns[name, ""] += 1
        if trace.paused:  # inside a leaf, which accounts for it
            chosen.append(None)
            return
        trace.paused += 1
        chosen.append(
            norms.handler_of(module, args, kwargs, backward=not trace.trusting) if handler is None else handler
        )
        if chosen[-1] is None:
            trace.paused -= 1

    return hook


def _leave(trace: Trace, chosen: Chosen) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict, output: Any) -> None:
        handler = chosen.pop()
        if handler is not None:
            if trace.paused == 1:  # a leaf inside a leaf is the outer one's own business
                read, written = (
                    [x for x in tree_leaves(t) if isinstance(x, torch.Tensor)] for t in ((args, kwargs), output)
                )
                held = trace.meet(read)
                with trace.accounting(type(module).__name__, [*read, *module.parameters()], held, written):
                    handler(trace, module, args, kwargs, output)
            trace.paused -= 1
        trace.path.pop()

    return hook
