"""Feedback in data-parallel training: every process draws the same B, so nothing has to be sent.

DistributedDataParallel with ``broadcast_buffers=True`` would resend every B in every step. States that depend on the
weight (Kolen–Pollack's, aligned feedback) are left to it: they must be those of the rank whose weights all receive.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from lawful.attachment.coverage import Site
from lawful.attachment.leaf import FeedbackLeaf

_IGNORED = "_ddp_params_and_buffers_to_ignore"
_BEFORE = "_lawful_ddp_before"


def keep_from_ddp(model: nn.Module, sites: Iterable[Site]) -> None:
    """Have DistributedDataParallel leave the states of these sites alone."""
    names = [
        f"{site.prefix}." * bool(site.prefix) + buffer
        for site in sites
        if isinstance(site.module, FeedbackLeaf)
        for buffer in site.module.lawful_feedback[site.weight].buffers.values()
    ]
    before = model.__dict__.get(_IGNORED)
    model.__dict__[_BEFORE] = before
    model.__dict__[_IGNORED] = [*(before or ()), *names]


def give_to_ddp(model: nn.Module) -> None:
    """Undo :func:`keep_from_ddp`."""
    before = model.__dict__.pop(_BEFORE)
    if before is None:
        del model.__dict__[_IGNORED]
    else:
        model.__dict__[_IGNORED] = before
