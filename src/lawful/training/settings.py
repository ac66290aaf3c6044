"""What a training run is made of: names and numbers, so that a checkpoint can rebuild it."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import nn

from lawful.errors import SettingError


@dataclass(frozen=True)
class Settings:
    """One training run.

    Args:
        model: a name of :data:`lawful.training.models.MODELS`, or ``module:factory``.
        data: a name of :data:`lawful.data.registry.DATA`.
        rule: a name of :data:`lawful.rules.registry.RULES` with options: ``fa:seed=1``.
        optimizer: the name of a torch.optim optimizer in any case, with options: ``sgd:momentum=0.9``.
        lr: learning rate.
        epochs: passes over the training set.
        batch: examples in a step.
        examples: training examples to use; None for all.
        seed: of the weights, the order of examples, and dropout.

    Raises:
        SettingError: a number out of range.
    """

    model: str = "mlp"
    data: str = "digits"
    rule: str = "fa"
    optimizer: str = "adam"
    lr: float = 1e-3
    epochs: int = 10
    batch: int = 64
    examples: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {"epochs": 0, "batch": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise SettingError(f"{name} must be an integer >= {least}; got {getattr(self, name)}")
        if not 0 < self.lr < float("inf"):
            raise SettingError(f"lr must be a positive number; got {self.lr}")

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """A short name of everything but ``epochs``, which may change in a resumed run."""
        fixed = {name: value for name, value in self.as_dict().items() if name != "epochs"}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:8]

    def check_continues(self, saved: Settings) -> None:
        """Refuse to continue a run of other settings; only ``epochs`` may change."""
        names = [field.name for field in fields(self) if field.name != "epochs"]
        pairs = [(name, getattr(saved, name), getattr(self, name)) for name in names]
        changes = ", ".join(f"{name} was {old!r}, is {new!r}" for name, old, new in pairs if old != new)
        if changes:
            raise SettingError(f"a resumed run keeps its settings, only epochs may change: {changes}")


def make_optimizer(text: str, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """The optimizer that ``text`` names: ``adam``, ``sgd:momentum=0.9,weight_decay=1e-4``.

    Raises:
        SettingError: no such optimizer, option or value.
    """
    name, _, rest = text.partition(":")
    known = {n.lower(): cls for n, cls in vars(torch.optim).items() if _is_optimizer(cls)}
    if name.lower() not in known:
        raise SettingError(f"optimizer must be one of {', '.join(sorted(known))}; got {name!r}")
    make, options = known[name.lower()], _options(text, rest)
    allowed = set(inspect.signature(make).parameters) - {"params", "lr"}
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise SettingError(
            f"optimizer {name!r} has no option {unknown[0]!r}; its options are {', '.join(sorted(allowed))}"
        )
    try:
        return make(parameters, lr=lr, **options)
    except (ValueError, TypeError) as error:
        raise SettingError(f"optimizer {text!r}: {error}") from error


def _is_optimizer(value: Any) -> bool:
    """Not SparseAdam, which refuses the gradients of dense models."""
    kind = torch.optim.Optimizer
    return inspect.isclass(value) and issubclass(value, kind) and value not in (kind, torch.optim.SparseAdam)


def _options(text: str, rest: str) -> dict[str, Any]:
    """``a=1,b=(2,3)`` as keyword arguments of literal values."""
    try:
        call = ast.parse(f"f({rest})", mode="eval").body
        assert isinstance(call, ast.Call) and not call.args
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise SettingError(f"optimizer {text!r}: expected option=value after the colon, separated by commas") from error
