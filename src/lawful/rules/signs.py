"""A size with the signs of a weight: what the sign-symmetry rules send errors through."""

from __future__ import annotations

import torch

from lawful.types import Array, namespace


def signed(size: Array, weight: Array) -> Array:
    """Size ⊙ sign(W), with sign(0) = 0, of the shape of ``weight``; ``size`` is a number or of that shape.

    The product is taken in place: a second temporary as large as W costs several times the arithmetic. vmap cannot
    do that where it maps over ``size`` alone, so under torch.func the product is a tensor of its own.
    """
    if not isinstance(weight, torch.Tensor):
        return namespace(weight).sign(weight) * size
    signs = torch.sign(weight)
    return signs * size if torch._C._are_functorch_transforms_active() else signs.mul_(size)
