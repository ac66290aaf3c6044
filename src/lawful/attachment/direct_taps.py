"""Where a direct rule taps a model: the blocks that receive a signal, and the module whose output is the logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise

from torch import nn
from torch.nn.modules import activation

from lawful.attachment.coverage import SENDS_NO_ERROR
from lawful.errors import SettingError

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.Identity,
    *(getattr(activation, name) for name in activation.__all__ if name != "MultiheadAttention"),
)
"""Modules that stand for σ."""

_ADVICE = "name the blocks to teach, DirectFeedbackAlignment(taps=[…], output=…)"


def is_affine(module: nn.Module) -> bool:
    """Whether the module owns a weight that carries errors."""
    own = module.named_parameters(recurse=False)
    return not isinstance(module, tuple(SENDS_NO_ERROR)) and any(p.ndim > 1 and "weight" in name for name, p in own)


def find_output(model: nn.Module, name: str | None) -> str:
    """The dotted name of the logits module: ``name``, or else the last affine module."""
    modules = dict(model.named_modules())
    if name is not None:
        if name not in modules:
            raise SettingError(f"output={name!r} is no module of the model; candidates: {_candidates(model)}")
        return name
    affine = [name for name, module in modules.items() if is_affine(module)]
    if not affine:
        raise SettingError(f"the model has no affine module to be the output; candidates: {_candidates(model)}")
    return affine[-1]


def find_taps(model: nn.Module, patterns: Sequence[str] | None, output: str) -> tuple[str, ...]:
    """The dotted names of the tapped modules.

    Args:
        model: the model.
        patterns: names or patterns ("blocks.*.mlp"), or None for the default: the activations in a Sequential, else
            the children of a ModuleList.
        output: the logits module, never a tap.

    Raises:
        SettingError: a pattern matches nothing, or there is no clear default; the message lists candidates.
    """
    if patterns is not None:
        return _matching(model, patterns, output)
    return _activations(model, output) or _blocks(model, output) or _refuse(model, "no Sequential with activations")


def _matching(model: nn.Module, patterns: Sequence[str], output: str) -> tuple[str, ...]:
    names = [name for name, _ in model.named_modules() if name and not _holds(name, output)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise SettingError(
                f"tap {pattern!r} matches no module before the output {output!r}; candidates: {_candidates(model)}"
            )
    return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def _activations(model: nn.Module, output: str) -> tuple[str, ...]:
    """Activations directly in a Sequential, one behind every affine layer; none in a model with ModuleLists."""
    modules = dict(model.named_modules())
    if any(isinstance(module, nn.ModuleList) for module in modules.values()):
        return ()
    inside = {
        f"{name}.{child}" if name else child
        for name, module in modules.items()
        if isinstance(module, nn.Sequential)
        for child, _ in module.named_children()
    }
    order = [name for name in modules if name in inside]  # the order of the forward pass, as the model wrote it
    order = order[: order.index(output)] if output in order else order
    found = [name for name in order if isinstance(modules[name], ACTIVATIONS)]
    if not found:
        return ()
    _check_separated(model, order, found, output)
    return tuple(_last(run, modules) for run in _runs(order, found, modules))


def _runs(order: Sequence[str], found: Sequence[str], modules: Mapping[str, nn.Module]) -> list[list[str]]:
    """The activations that follow each affine layer."""
    runs: list[list[str]] = []
    for name in order:
        if is_affine(modules[name]):
            runs.append([])
        elif name in found and runs:
            runs[-1].append(name)
    return [run for run in runs if run]


def _last(run: list[str], modules: Mapping[str, nn.Module]) -> str:
    """The last of a run, so that σ' of all is in the gradient; an Identity only where it stands for σ alone."""
    true = [name for name in run if not isinstance(modules[name], nn.Identity)]
    return (true or run)[-1]


def _check_separated(model: nn.Module, order: Sequence[str], found: Sequence[str], output: str) -> None:
    """By default every affine layer but the output has its own tap, so that no error is backpropagated in silence."""
    affine = [name for name, module in model.named_modules() if is_affine(module) and name != output]
    strangers = [name for name in affine if name not in order]
    if strangers:
        _refuse(model, f"{strangers[0]} lies outside the Sequentials whose activations could be tapped")
    line = [name for name in order if name in affine or name in found]
    for one, two in pairwise([*line, output]):
        if one in affine and two not in found:
            _refuse(model, f"no activation module stands between {one} and {two}")


def _blocks(model: nn.Module, output: str) -> tuple[str, ...]:
    """The children of the outermost ModuleLists."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outermost = {n: m for n, m in lists.items() if not any(_holds(other, n) for other in lists if other != n)}
    taps = {f"{n}.{child}": m for n, blocks in outermost.items() for child, m in blocks.named_children()}
    taps = {name: module for name, module in taps.items() if not _holds(name, output)}
    bare = next((name for name, module in taps.items() if is_affine(module)), None)
    if bare is not None:
        _refuse(model, f"{bare} is a bare affine layer whose activation is applied outside it")
    return tuple(taps)


def _holds(outer: str, inner: str) -> bool:
    return outer == "" or inner == outer or inner.startswith(f"{outer}.")


def _refuse(model: nn.Module, why: str) -> tuple[str, ...]:
    raise SettingError(f"no default taps: {why}. To choose them, {_ADVICE}; candidates: {_candidates(model)}")


def _candidates(model: nn.Module, most: int = 24) -> str:
    names = [n for n, m in model.named_modules() if n and not isinstance(m, (nn.ModuleList, nn.ModuleDict))]
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
