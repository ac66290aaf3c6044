"""lawful: train any PyTorch model with a feedback learning rule, and prove which quantities training conserves."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lawful.attachment.attachment import Attachment as Attachment
    from lawful.attachment.attachment import attach as attach
    from lawful.attachment.attachment import attachment_of as attachment_of
    from lawful.rules.backprop import Backprop as Backprop
    from lawful.rules.feedback_alignment import FeedbackAlignment as FeedbackAlignment

__version__ = "0.1.0"

_HOME = {
    "attach": "lawful.attachment.attachment",
    "attachment_of": "lawful.attachment.attachment",
    "Attachment": "lawful.attachment.attachment",
    "Backprop": "lawful.rules.backprop",
    "FeedbackAlignment": "lawful.rules.feedback_alignment",
    "LawfulError": "lawful.errors",
}
"""Public name -> the module that defines it; imported on first use, so ``import lawful`` stays light (PEP 562)."""

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'lawful' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
