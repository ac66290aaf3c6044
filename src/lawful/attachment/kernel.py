"""One autograd Function per affine operation and per tracer, from a forward pass and its gradients stated once.

Eager code takes the combined ``forward(ctx, …)``, the cheapest call, and makes B in the backward pass.
``torch.compile`` needs ``setup_context`` and no jvp; ``torch.func`` needs ``setup_context``, a generated vmap rule, and
a jvp, which uses the true W because forward mode sends no error back. For these two B is made in the forward pass; what
of it is kept is for the compiler to decide.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch._C._functorch import unwrap_if_dead
from torch.autograd import Function

from lawful.attachment.guard import final, refuse_graph

Transport = Callable[..., torch.Tensor]
"""``Rule.transport`` when a rule overrides it; None stands for the plain adjoint."""

Gradients = tuple[torch.Tensor | None, ...]


def given(weight: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """How B is made where it is there already."""
    return B


class Operand(NamedTuple):
    """One weight as kernels read it: W, how B = make(W, *sources) is made of it, and the rule's own transport if any.

    A B that depends on W is as large as W. Made in the backward pass, and only where an error is sent, it lives for one
    product instead of from the forward pass on.
    """

    weight: torch.Tensor
    sources: tuple[torch.Tensor, ...]
    make: Callable[..., torch.Tensor] = given
    transport: Transport | None = None

    @property
    def B(self) -> torch.Tensor:
        """B, made now; no gradient flows into it."""
        return self.make(self.weight.detach(), *self.sources)


class Forward(Protocol):
    """h = f(inputs, W) + b."""

    def __call__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, inputs: tuple[torch.Tensor, ...], options: Any, /
    ) -> torch.Tensor:
        """The operation, on tensors."""
        ...


class Backward(Protocol):
    """(∂W, ∂b, errors sent to the inputs …), the last by B = feedback() where W stands; None where ``needs`` says no.

    A B that nobody holds is gone before the gradient of W is allocated.
    """

    def __call__(
        self,
        delta: torch.Tensor,
        weight: torch.Tensor,
        feedback: Callable[[], torch.Tensor],
        inputs: tuple[torch.Tensor, ...],
        options: Any,
        transport: Transport | None,
        needs: tuple[bool, ...],
        /,
    ) -> Gradients:
        """The gradients, on tensors."""
        ...


class Kernel(Protocol):
    """An affine operation with feedback: bitwise its forward pass, errors through B."""

    def __call__(
        self, options: Any, operand: Operand, bias: torch.Tensor | None, *inputs: torch.Tensor
    ) -> torch.Tensor:
        """Call the operation."""
        ...


class Tangent(Protocol):
    """Forward mode: the tangent of h from tangents of W, b and the inputs (None where there is none)."""

    def __call__(
        self,
        weight: torch.Tensor,
        inputs: tuple[torch.Tensor, ...],
        options: Any,
        weight_t: torch.Tensor | None,
        bias_t: torch.Tensor | None,
        inputs_t: tuple[torch.Tensor | None, ...],
        /,
    ) -> torch.Tensor:
        """The tangent, on tensors."""
        ...


def multilinear_tangent(forward: Forward) -> Tangent:
    """The product rule, for operations linear in W and in each input."""

    def tangent(
        weight: torch.Tensor,
        inputs: tuple[torch.Tensor, ...],
        options: Any,
        weight_t: torch.Tensor | None,
        bias_t: torch.Tensor | None,
        inputs_t: tuple[torch.Tensor | None, ...],
    ) -> torch.Tensor:
        terms = [
            forward(weight, None, (*inputs[:i], x_t, *inputs[i + 1 :]), options)
            for i, x_t in enumerate(inputs_t)
            if x_t is not None
        ]
        if weight_t is not None or bias_t is not None:
            terms.append(forward(torch.zeros_like(weight) if weight_t is None else weight_t, bias_t, inputs, options))
        return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]

    return tangent


def _own(out: torch.Tensor) -> torch.Tensor:
    """The tensor, but no view: torch lets nobody write in place into a view that a Function made (``h += x``)."""
    base = out._base
    if base is None:
        return out
    is_whole = out.numel() == base.numel() and out.is_contiguous() and base.is_contiguous()
    return torch.ops.aten._unsafe_view(base, out.shape) if is_whole else out.clone()


def feedback_kernel(name: str, forward: Forward, gradients: Backward, tangent: Tangent | None = None) -> Kernel:
    """Make the kernel of an operation.

    Args:
        name: what profilers show.
        forward: the operation; its result must be bitwise that of the module it stands for.
        gradients: what the backward pass returns.
        tangent: forward mode; by default the product rule.
    """
    push = multilinear_tangent(forward) if tangent is None else tangent

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.options, ctx.transport, weight, _, B, *rest = inputs
        ctx.save_for_backward(weight, B, *rest)
        ctx.save_for_forward(weight, B, *rest)

    def differentiate(ctx: Any, delta: torch.Tensor, weight: torch.Tensor, *tensors: torch.Tensor) -> Gradients:
        options, make, transport, count, _ = ctx.call
        needs = ctx.needs_input_grad[1 : 3 + count]
        feedback = partial(make, weight, *tensors[count:])
        return gradients(delta, weight, feedback, tensors[:count], options, transport, needs)

    class Eager(Function):
        @staticmethod
        def forward(ctx: Any, call: Any, weight: Any, bias: Any, *tensors: Any) -> Any:
            ctx.save_for_backward(weight, *tensors)  # the inputs, then what B is made of
            ctx.call = call
            options, _, _, count, _ = call
            return _own(forward(weight, bias, tensors[:count], options))

        @staticmethod
        def backward(ctx: Any, delta: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            refuse_graph()
            return None, *differentiate(ctx, delta, *ctx.saved_tensors), *ctx.call[4]

    def with_B(options: Any, transport: Any, weight: Any, bias: Any, B: Any, *inputs: Any) -> Any:
        return forward(weight, bias, inputs, options)

    class Compiled(Function):
        forward = staticmethod(with_B)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.options, ctx.transport, weight, _, B, *rest = inputs
            ctx.save_for_backward(weight, B, *rest)

        @staticmethod
        def backward(ctx: Any, delta: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            # torch.compile itself refuses a second backward, so no guard is traced.
            weight, B, *inputs = ctx.saved_tensors
            needs = ctx.needs_input_grad
            needs = (needs[2], needs[3], *needs[5:])
            feedback = lambda: B  # noqa: E731
            found = gradients(delta, weight, feedback, tuple(inputs), ctx.options, ctx.transport, needs)
            weight_g, bias_g, *errors = found
            return None, None, weight_g, bias_g, None, *errors

    class Transformed(Function):
        generate_vmap_rule = True
        forward = staticmethod(with_B)
        setup_context = staticmethod(setup)

        @staticmethod
        def backward(ctx: Any, delta: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            options, transport, needs = ctx.options, ctx.transport, ctx.needs_input_grad
            needs = (needs[2], needs[3], *needs[5:])

            def compute(delta: torch.Tensor, weight: torch.Tensor, B: torch.Tensor, *inputs: torch.Tensor) -> Gradients:
                return gradients(delta, weight, lambda: B, inputs, options, transport, needs)

            weight_g, bias_g, *errors = final(compute, delta, *ctx.saved_tensors)
            return None, None, weight_g, bias_g, None, *errors

        @staticmethod
        def jvp(ctx: Any, _o: Any, _t: Any, weight_t: Any, bias_t: Any, _B: Any, *inputs_t: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            weight, _, *inputs = ctx.saved_tensors
            return push(weight, tuple(inputs), ctx.options, weight_t, bias_t, inputs_t)

    for function in (Eager, Compiled, Transformed):
        function.__name__ = function.__qualname__ = f"{name}{function.__name__}"
    # Function.apply without its Python half, which looks for functorch: the kernel has looked, and asks it of x alone
    apply = super(Function, Eager).apply  # pyright: ignore[reportAttributeAccessIssue]

    def kernel(options: Any, operand: Operand, bias: torch.Tensor | None, *inputs: torch.Tensor) -> Any:
        weight, sources, make, transport = operand
        if torch.compiler.is_compiling():
            return Compiled.apply(options, transport, weight, bias, operand.B, *inputs)
        if torch._C._are_functorch_transforms_active():
            return Transformed.apply(options, transport, weight, bias, operand.B, *inputs)
        call = options, make, transport, len(inputs), (None,) * len(sources)
        return apply(call, weight, bias, *map(unwrap_if_dead, inputs), *sources)

    return kernel


def cast_for_autocast(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as autocast would hand it to an affine op, cast where autograd can see it."""
    device = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))
