"""How far a rule's gradient points away from backpropagation's, for the progress of a training run."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import nn

from lawful.attachment.base import attachment_of


def gradient_angle(model: nn.Module, loss_of: Callable[[nn.Module], torch.Tensor]) -> float:
    """∠(g, g_bp) in degrees over all parameters together, g the attached rule's gradient, g_bp the loss's own.

    Both are taken on copies of the model in eval mode, so that training goes on as if nothing had been measured.

    Args:
        model: a model with a rule attached.
        loss_of: the loss of a model on a fixed batch.

    Returns:
        0 for backpropagation, about 90 for an unrelated direction; nan when either gradient vanishes.
    """
    ruled, plain = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    attachment_of(plain).remove()
    g, h = _gradient(ruled, loss_of), _gradient(plain, loss_of)
    size = float(g.norm() * h.norm())
    return math.degrees(math.acos(max(-1.0, min(1.0, float(g @ h) / size)))) if size > 0 else math.nan


def _gradient(model: nn.Module, loss_of: Callable[[nn.Module], torch.Tensor]) -> torch.Tensor:
    model.zero_grad()
    loss_of(model).backward()
    flat = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().double() for p in model.parameters()]
    return torch.cat(flat)
