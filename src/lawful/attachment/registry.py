"""Which module types carry errors, by which of their weights, and which send none: the table, and how to add to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.utils import parametrize

from lawful.attachment.attention import AttentionLeaf
from lawful.attachment.leaf import FeedbackLeaf
from lawful.attachment.leaves import ConvLeaf, TransposedConvLeaf, TransposedLinearLeaf
from lawful.attachment.linear_leaf import LinearLeaf
from lawful.attachment.operands import OperandLeaf
from lawful.attachment.recurrent import CellLeaf, RecurrentLeaf
from lawful.errors import SettingError

ADDED = "added after the error has passed: no feedback needed"
EMBEDDING = "embedding: there is no input error to send"
NORM = "normalisation: its elementwise scale carries the error itself"
SLOPE = "activation: its slope is part of σ'"
SCALE = "elementwise scale: it carries the error itself"


@dataclass(frozen=True)
class Kind:
    """What a module type is to a feedback rule.

    Args:
        leaf: the mixin that gives its forward pass feedback; None for types without weights that carry errors.
        weights: name patterns of the weights that carry errors.
        others: name pattern -> why a parameter needs no feedback.
        simple: one weight used once; then a subclass with a forward pass of its own is covered operation by operation.
    """

    leaf: type[FeedbackLeaf] | None = None
    weights: tuple[str, ...] = ()
    others: Mapping[str, str] = field(default_factory=dict)
    simple: bool = False

    def carries(self, name: str) -> bool:
        """Whether errors travel through the parameter ``name``."""
        return any(fnmatchcase(name, pattern) for pattern in self.weights)

    def reason(self, name: str) -> str | None:
        """Why the parameter ``name`` needs no feedback, or None if nobody says so."""
        return next((why for pattern, why in self.others.items() if fnmatchcase(name, pattern)), None)


def _affine(leaf: type[FeedbackLeaf]) -> Kind:
    return Kind(leaf, ("weight",), {"bias": ADDED}, simple=True)


_ATTENTION = Kind(AttentionLeaf, ("in_proj_weight", "[qkv]_proj_weight"), {"in_proj_bias": ADDED, "bias_[kv]": ADDED})
_RECURRENT = Kind(RecurrentLeaf, ("weight_*",), {"bias_*": ADDED})
_CELL = Kind(CellLeaf, ("weight_*",), {"bias_*": ADDED})

KINDS: dict[type[nn.Module], Kind] = {
    nn.Linear: _affine(LinearLeaf),
    nn.Bilinear: _affine(OperandLeaf),
    nn.Conv1d: _affine(ConvLeaf),
    nn.Conv2d: _affine(ConvLeaf),
    nn.Conv3d: _affine(ConvLeaf),
    nn.ConvTranspose1d: _affine(TransposedConvLeaf),
    nn.ConvTranspose2d: _affine(TransposedConvLeaf),
    nn.ConvTranspose3d: _affine(TransposedConvLeaf),
    nn.MultiheadAttention: _ATTENTION,
    nn.LSTM: _RECURRENT,
    nn.GRU: _RECURRENT,
    nn.RNN: _RECURRENT,
    nn.LSTMCell: _CELL,
    nn.GRUCell: _CELL,
    nn.RNNCell: _CELL,
}
"""Module types whose weights carry errors."""

SENDS_NO_ERROR: dict[type[nn.Module], Kind] = {
    nn.Embedding: Kind(others={"*": EMBEDDING}),
    nn.EmbeddingBag: Kind(others={"*": EMBEDDING}),
    nn.modules.batchnorm._NormBase: Kind(others={"*": NORM}),
    nn.LayerNorm: Kind(others={"*": NORM}),
    nn.GroupNorm: Kind(others={"*": NORM}),
    nn.RMSNorm: Kind(others={"*": NORM}),
    nn.PReLU: Kind(others={"*": SLOPE}),
    parametrize.ParametrizationList: Kind(others={"*": "part of a reparametrisation: errors meet the weight it makes"}),
}
"""Module types whose parameters no rule replaces; they are listed, never raised. Subclasses count."""

_TOKENS = {"cls_token": ADDED, "mask_token": ADDED, "distillation_token": ADDED, "position_embeddings": ADDED}

BY_NAME: dict[str, Kind] = {
    "transformers.pytorch_utils.Conv1D": _affine(TransposedLinearLeaf),
    "transformers.models.vit.modeling_vit.ViTEmbeddings": Kind(others=_TOKENS),
    "transformers.models.deit.modeling_deit.DeiTEmbeddings": Kind(others=_TOKENS),
    "transformers.models.clip.modeling_clip.CLIPVisionEmbeddings": Kind(others={"class_embedding": ADDED}),
}
"""The same by qualified name, so that nothing needs to be imported or installed."""

_OWN_FORWARD = ("forward", "__call__", "_conv_forward", "_output_padding")


def register(
    kind: type[nn.Module] | str,
    *,
    weights: Sequence[str] = (),
    added: Sequence[str] = (),
    elementwise: Sequence[str] = (),
) -> None:
    """Tell lawful what the raw parameters of a module type are, so that ``attach`` covers it.

    Inside the module's own, unedited forward pass each of ``weights`` then stands for the pair (W, B): matrix products,
    ``F.linear``, convolutions and ``einsum`` with it compute with W and send errors through B; views of it stay such
    pairs; any other use of it raises a CoverageError that names the operation. Forward passes stay bitwise the same.

    Args:
        kind: the module type, or its qualified name ("package.module.Class").
        weights: names (or patterns) of parameters that inputs are multiplied with.
        added: parameters that are only added or concatenated (biases, position embeddings, class tokens).
        elementwise: parameters that scale elementwise; the error passes through the scale itself, as through σ'.

    Raises:
        SettingError: ``kind`` is no module type, or nothing is said about it.

    >>> import torch, lawful
    >>> class Mix(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.mix = torch.nn.Parameter(torch.eye(3))
    ...     def forward(self, x):
    ...         return x @ self.mix
    >>> lawful.register(Mix, weights=["mix"])
    >>> lawful.attach(Mix(), lawful.FeedbackAlignment()).coverage
    {'mix': "fed back by FeedbackAlignment(seed=0, init='normal')"}
    """
    if not (isinstance(kind, str) or (isinstance(kind, type) and issubclass(kind, nn.Module))):
        raise SettingError(f"register: expected a module type or its qualified name; got {kind!r}")
    if not (weights or added or elementwise):
        raise SettingError(f"register({kind}): name its parameters by weights=, added= or elementwise=")
    others = dict.fromkeys(added, ADDED) | dict.fromkeys(elementwise, SCALE)
    entry = Kind(OperandLeaf if weights else None, tuple(weights), others)
    if isinstance(kind, str):
        BY_NAME[kind] = entry
    else:
        KINDS[kind] = entry


def kind_of(module: nn.Module) -> Kind | None:
    """What lawful knows about a module, or None; subclasses count where they keep the forward pass.

    A subclass of a simple type with a forward pass of its own, and no parameters of its own, is covered operation by
    operation, as if it had been registered.
    """
    lineage = type(module).__mro__[1:] if parametrize.is_parametrized(module) else type(module).__mro__
    for i, cls in enumerate(lineage):
        kind = KINDS.get(cls) or BY_NAME.get(f"{cls.__module__}.{cls.__qualname__}")
        if kind is None:
            continue
        if not any(name in vars(sub) for sub in lineage[:i] for name in _OWN_FORWARD):
            return kind
        return Kind(OperandLeaf, kind.weights, kind.others) if kind.simple else None
    known = next((kind for cls, kind in SENDS_NO_ERROR.items() if isinstance(module, cls)), None)
    return known or (Kind(others={"*": NORM}) if _looks_like_a_norm(module) else None)


def _looks_like_a_norm(module: nn.Module) -> bool:
    """Every model library writes its own RMSNorm; all end in "Norm" and own vectors only."""
    return type(module).__name__.endswith("Norm") and all(p.ndim <= 1 for p in module.parameters(recurse=False))
