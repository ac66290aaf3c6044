"""Labels of the elements of a tensor: the channel that each belongs to, or why it belongs to none."""

from __future__ import annotations

import torch

NONE = -1
"""Label of an element of no channel: its E is not followed."""
ZERO = -2
"""Label of an element that is always zero (padding): it belongs to any channel."""


def channels_of(labels: torch.Tensor) -> list[int]:
    """The channels among some labels."""
    ids = torch.unique(labels)
    return ids[ids >= 0].tolist()


def tells_apart(labels: torch.Tensor, axis: int) -> bool:
    """Whether channels change along an axis."""
    return labels.numel() > 0 and not bool((labels == labels.narrow(axis, 0, 1)).all())
