"""Alignment: the angle between what a learning rule uses and what backpropagation would use."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import nn

from lawful.attachment.attachment import attachment_of
from lawful.attachment.direct import DirectAttachment
from lawful.errors import SettingError
from lawful.types import Array


def cosine(a: Array, b: Array) -> float:
    """⟨a, b⟩ / (‖a‖‖b‖) of two arrays of one shape, read as vectors; 0 when one of them is zero, nan if not finite.

    In float64 and of vectors of largest element 1, so that no square leaves the range of numbers.

    Raises:
        SettingError: different shapes.

    >>> import numpy as np
    >>> round(cosine(np.array([3.0, 4.0]), np.array([4.0, 3.0])), 12)
    0.96
    """
    if tuple(a.shape) != tuple(b.shape):
        raise SettingError(f"an angle needs two arrays of one shape; got {tuple(a.shape)} and {tuple(b.shape)}")
    x, y = (torch.as_tensor(v).detach().double() for v in (a, b))
    if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
        return math.nan
    if not bool(x.any() and y.any()):
        return 0.0
    x, y = (v / v.abs().max() for v in (x, y))
    return max(-1.0, min(1.0, float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())))


def angle(a: Array, b: Array) -> float:
    """The angle between two arrays in degrees, 0 to 180; 90 when one of them is zero.

    >>> import numpy as np
    >>> round(angle(np.array([1.0, 0.0]), np.array([0.0, 2.0])), 9)
    90.0
    """
    return float(torch.rad2deg(torch.arccos(torch.tensor(cosine(a, b), dtype=torch.float64))))


def weight_angles(model: nn.Module) -> dict[str, float]:
    """∠(W, B) in degrees for every weight of an attached model, by dotted name; direct rules have no such B.

    Raises:
        AttachmentError: the model carries no rule.
    """
    attachment = attachment_of(model)
    weights = dict(model.named_parameters(remove_duplicate=False))
    if isinstance(attachment, DirectAttachment):
        return {}
    return {name: angle(weights[name].detach(), attachment.feedback_of(name).detach()) for name in attachment.rules}


def gradient_angles(model: nn.Module, loss: Callable[[nn.Module], torch.Tensor]) -> dict[str, float]:
    """The angle in degrees between the rule's update and backpropagation's, for every parameter, on one batch.

    The model is left as it is: both gradients are taken on copies, the second with the rule removed.

    Args:
        model: an attached model.
        loss: the loss of a model, ``lambda net: criterion(net(x), y)``.

    Raises:
        AttachmentError: the model carries no rule.
    """
    attachment_of(model)
    fed, true = copy.deepcopy(model), copy.deepcopy(model)
    attachment_of(true).remove()
    gradients = []
    for net in (fed, true):
        net.zero_grad(set_to_none=True)
        loss(net).backward()
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    return {name: angle(g, gradients[1][name]) for name, g in gradients[0].items() if name in gradients[1]}
