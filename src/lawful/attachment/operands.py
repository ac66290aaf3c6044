"""Raw parameters used by ``@``, ``einsum`` and functional calls: a weight that stands for the pair (W, B).

Inside the forward pass of a swapped module each weight is an :class:`Operands` tensor. Views of it view W and B alike;
a product with it becomes a kernel whose errors go through B; everything else raises, so that no error travels through W
unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

from lawful.attachment.kernel import Gradients, Operand, Transport, feedback_kernel
from lawful.attachment.leaf import FeedbackLeaf, sends_no_error
from lawful.errors import CoverageError

Function = Callable[..., Any]


def _of_tensor(names: str) -> set[Function]:
    return {getattr(torch.Tensor, name) for name in names.split()}


def _properties(names: str) -> set[Function]:
    return {getattr(torch.Tensor, name).__get__ for name in names.split()}


def _of(namespace: Any, names: str) -> set[Function]:
    return {getattr(namespace, name) for name in names.split()}


VIEWS: set[Function] = (
    _of_tensor(
        "t transpose permute reshape view unsqueeze squeeze flatten unflatten chunk split unbind narrow select movedim "
        "swapaxes swapdims expand expand_as contiguous clone to type double float half bfloat16 __getitem__"
    )
    | _of(
        torch, "t transpose permute reshape unsqueeze squeeze flatten unflatten chunk split unbind narrow movedim clone"
    )
    | _properties("T mT H mH")
)
"""Operations that a weight survives as a pair (W, B)."""

PRODUCTS: set[Function] = (
    _of_tensor("matmul mm bmm mv addmm baddbmm __matmul__ __rmatmul__ inner")
    | _of(torch, "matmul mm bmm mv addmm baddbmm einsum tensordot inner")
    | _of(F, "linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")
)
"""Operations that are linear in the weight and in each input."""

ADDED: dict[Function, int] = (
    dict.fromkeys(_of(F, "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"), 2)
    | {F.bilinear: 3}
    | dict.fromkeys(_of_tensor("addmm baddbmm") | _of(torch, "addmm baddbmm"), 0)
)
"""Where a product takes a tensor that is only added (or ``bias=``): its gradient is no error sent through W."""

QUESTIONS: set[Function] = _of_tensor("size dim numel stride is_floating_point is_contiguous __len__") | _properties(
    "shape ndim dtype device requires_grad layout is_sparse is_nested is_leaf is_cuda grad"
)
"""What can be asked of W without using it."""


class _Call(NamedTuple):
    """A product: the function, where its tensors go, and the autocast it ran under."""

    function: Function
    fill: Callable[[Iterable[torch.Tensor]], tuple[tuple[Any, ...], dict[str, Any]]]
    position: int
    """Where the weight stands among the tensors."""
    added: int | None
    """Which input, if any, is only added."""
    autocast: tuple[str, torch.dtype, bool]

    def __call__(self, weight: torch.Tensor, inputs: Iterable[torch.Tensor]) -> torch.Tensor:
        device, dtype, enabled = self.autocast
        tensors = list(inputs)
        tensors.insert(self.position, weight)
        args, kwargs = self.fill(tensors)
        with torch.autocast(device, dtype, enabled):
            return self.function(*args, **kwargs)


def _forward(
    weight: torch.Tensor, bias: torch.Tensor | None, inputs: tuple[torch.Tensor, ...], call: _Call
) -> torch.Tensor:
    return call(weight, inputs)


def _gradients(
    delta: torch.Tensor,
    weight: torch.Tensor,
    feedback: Callable[[], torch.Tensor],
    inputs: tuple[torch.Tensor, ...],
    call: _Call,
    transport: Transport | None,
    needs: tuple[bool, ...],
) -> Gradients:
    weight_g = torch.func.vjp(lambda W: call(W, inputs), weight)[1](delta)[0] if needs[0] else None
    if not any(needs[2:]):
        return weight_g, None, *(None for _ in inputs)
    B = feedback()

    def adjoint(i: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        def send(delta: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
            return torch.func.vjp(lambda x: call(B, (*inputs[:i], x, *inputs[i + 1 :])), inputs[i])[1](delta)[0]

        return send

    errors = [
        None
        if not needed
        else adjoint(i)(delta, B)
        if transport is None or i == call.added
        else transport(delta, B, adjoint(i))
        for i, needed in enumerate(needs[2:])
    ]
    return weight_g, None, *errors


def _tangent(
    weight: torch.Tensor,
    inputs: tuple[torch.Tensor, ...],
    call: _Call,
    weight_t: torch.Tensor | None,
    bias_t: torch.Tensor | None,
    inputs_t: tuple[torch.Tensor | None, ...],
) -> torch.Tensor:
    primals = (weight, *inputs)
    tangents = tuple(
        torch.zeros_like(p) if t is None else t for p, t in zip(primals, (weight_t, *inputs_t), strict=True)
    )
    return torch.func.jvp(lambda W, *xs: call(W, xs), primals, tangents)[1]


_product = feedback_kernel("FeedbackProduct", _forward, _gradients, _tangent)


class Operands(torch.Tensor):
    """W inside a swapped module's own forward pass, with B and the leaf's name at hand."""

    lawful_operand: Operand
    lawful_name: str

    @staticmethod
    def of(operand: Operand, name: str) -> Operands:
        """The pair as one tensor; autograd sees W."""
        pair = operand.weight.as_subclass(Operands)
        pair.lawful_operand = operand
        pair.lawful_name = name
        return pair

    @classmethod
    def __torch_function__(cls, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Views and products; anything else is refused by name."""
        kwargs = kwargs or {}
        leaves, spec = pytree.tree_flatten((args, kwargs))
        pairs = [leaf for leaf in leaves if isinstance(leaf, Operands)]
        if func in QUESTIONS:
            return func(*_plain(args), **_plain(kwargs))
        if func in VIEWS and len(pairs) == 1:
            return _view(func, args, kwargs, pairs[0])
        if func in PRODUCTS and len(pairs) == 1:
            slot = ADDED.get(func, len(args))
            added = args[slot] if slot < len(args) else kwargs.get("bias")
            return _multiply(func, leaves, spec, pairs[0], added)
        raise CoverageError(
            f"{pairs[0].lawful_name} meets {getattr(func, '__name__', func)} with {len(pairs)} registered weights: "
            "no product of one weight with inputs, so an error would travel through W. Register the parameter as "
            "added= or elementwise= if it is that, or write the step as F.linear, @ or einsum"
        )


def _plain(tree: Any) -> Any:
    return pytree.tree_map_only(Operands, lambda pair: pair.lawful_operand.weight, tree)


def _feedback(tree: Any) -> Any:
    return pytree.tree_map_only(Operands, lambda pair: pair.lawful_operand.B, tree)


def _view(func: Function, args: Any, kwargs: Any, pair: Operands) -> Any:
    W = func(*_plain(args), **_plain(kwargs))
    B = func(*_feedback(args), **_feedback(kwargs))
    transport = pair.lawful_operand.transport
    wrap = lambda w, b: Operands.of(Operand(w, (b,), transport=transport), pair.lawful_name)  # noqa: E731
    if isinstance(W, torch.Tensor):
        return wrap(W, B)
    return tuple(wrap(w, b) for w, b in zip(W, B, strict=True))


def _multiply(func: Function, leaves: list[Any], spec: Any, pair: Operands, bias: torch.Tensor | None) -> torch.Tensor:
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    frame = [None if i in places else leaf for i, leaf in enumerate(leaves)]

    def fill(tensors: Iterable[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        filled = list(frame)
        for i, tensor in zip(places, tensors, strict=True):
            filled[i] = tensor
        return pytree.tree_unflatten(filled, spec)

    operand = pair.lawful_operand
    device = operand.weight.device.type
    autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
    position = next(k for k, i in enumerate(places) if leaves[i] is pair)
    inputs = [leaves[i] for i in places if leaves[i] is not pair]
    added = next((k for k, tensor in enumerate(inputs) if tensor is bias), None)
    return _product(_Call(func, fill, position, added, autocast), operand, None, *inputs)


class OperandLeaf(FeedbackLeaf):
    """A module with a forward pass of its own, whose weights are pairs (W, B) while it runs."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward pass."""
        if sends_no_error():
            return super().forward(*args, **kwargs)
        real = {name: self._parameters[name] for name in self.lawful_feedback}
        entries: Any = self._parameters
        label = self.lawful_base.__name__
        try:
            for name in real:
                entries[name] = Operands.of(self.operand_with_B(name), f"{label}.{name}")
            return super().forward(*args, **kwargs)
        finally:
            entries.update(real)
