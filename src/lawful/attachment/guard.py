"""A feedback gradient is the derivative of no function, so differentiating it once more must raise, not answer.

Eager layers refuse the graph (``create_graph=True``). Functional transforms always make one, even for a first
derivative; there, and at the taps of direct rules, the graph is made and going back through it raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch.autograd import Function

from lawful.errors import DoubleBackwardError

_MESSAGE = (
    "a gradient through lawful's feedback layers was to be differentiated again (create_graph=True, a gradient "
    "penalty, a Hessian or nested torch.func.grad), but a feedback gradient is the derivative of no function, so its "
    "derivative would be a wrong number. Call attachment.remove() for second derivatives, or ask for no graph of the "
    "gradient."
)


def refuse() -> NoReturn:
    """Raise DoubleBackwardError."""
    raise DoubleBackwardError(_MESSAGE)


def refuse_graph() -> None:
    """Raise DoubleBackwardError in a backward pass that makes a graph of the gradients: exactly there grad mode is on.

    At once, for a graph that is never followed tells no one that it is wrong.
    """
    if torch.is_grad_enabled():
        refuse()


class _Final(Function):
    """Computes gradients when someone keeps a graph of them; going back through it raises.

    It takes every tensor that the gradients could be asked about (the weight too, on which a feedback gradient does
    not depend) so that ``allow_unused=True`` cannot turn the question into a silent None.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(compute: Callable[..., Any], *tensors: torch.Tensor | None) -> Any:
        return compute(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        refuse()

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        refuse()


def final(compute: Callable[..., Any], *tensors: torch.Tensor | None) -> Any:
    """``compute(*tensors)``, made impossible to differentiate where a graph of the gradients is being kept.

    Inside a backward pass grad mode is on exactly then.
    """
    return _Final.apply(compute, *tensors) if torch.is_grad_enabled() else compute(*tensors)
