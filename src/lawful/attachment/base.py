"""What every attachment offers, whether its rule sends errors layer by layer or straight from the output."""

from __future__ import annotations

import abc
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from lawful.errors import AttachmentError, UnfollowedRuleError

_ATTRIBUTE = "_lawful_attachment"
_LEARNING: WeakSet[Attachment] = WeakSet()


def attachment_or_none(model: nn.Module) -> Attachment | None:
    """The attachment of a model; None where it carries no rule: backpropagation, or somebody's own code."""
    return model.__dict__.get(_ATTRIBUTE)


def attachment_of(model: nn.Module) -> Attachment:
    """The attachment of a model, also of a copy made by deepcopy or pickle."""
    attachment = attachment_or_none(model)
    if attachment is None:
        raise AttachmentError("the model carries no rule: call lawful.attach(model, rule) first")
    return attachment


class Attachment(abc.ABC):
    """A rule on a model. Made by :func:`lawful.attach`; see there.

    Attributes:
        model: the model.
        coverage: every parameter's dotted name, and the rule that feeds it back or why none does.
        rules: name of what carries feedback (a dotted weight name, or a tap of a direct rule) -> its rule.
        steps: optimizer steps followed so far.
    """

    model: nn.Module
    coverage: dict[str, str]
    rules: dict[str, Any]

    def __init__(self, model: nn.Module) -> None:
        if _ATTRIBUTE in model.__dict__:
            raise AttachmentError("the model carries a rule already: call attachment.remove() before attaching another")
        self.model = model
        self.steps = 0
        self._followed: list[tuple[Any, Any]] = []

    @abc.abstractmethod
    def state(self, name: str) -> dict[str, torch.Tensor]:
        """The live rule state of one entry of ``rules``: {"B": …} for feedback alignment, {} for backpropagation."""

    @abc.abstractmethod
    def feedback_of(self, name: str) -> torch.Tensor:
        """B of one entry of ``rules``, as the backward pass would read it now."""

    @abc.abstractmethod
    def remove(self) -> None:
        """Restore backpropagation bitwise; parameters, and so optimizer states, are untouched."""

    @abc.abstractmethod
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; raises AttachmentError, changing nothing, if it belongs to other rules."""

    @abc.abstractmethod
    def _entries(self) -> dict[str, Any]:
        """What identifies this attachment's rules, as JSON values."""

    @abc.abstractmethod
    def _learners(self) -> Iterator[tuple[Any, torch.Tensor]]:
        """Rules that must act after optimizer steps, each with a parameter whose steps it must see."""

    @abc.abstractmethod
    def _act(self, is_stepped: Callable[[torch.Tensor], bool]) -> None:
        """Let the rules act after an optimizer step; ``is_stepped`` says whether a weight has taken it."""

    @property
    def attached(self) -> bool:
        """Whether the model still carries it: False after :meth:`remove`."""
        return self.model.__dict__.get(_ATTRIBUTE) is self

    def _check_attached(self, name: str) -> None:
        if not self.attached:
            raise AttachmentError(
                f"the rule that fed {name} back has been removed from the model, and is asked for still: expected "
                "attachment.remove() after the last look at its laws, or at a Ledger of them; lawful.laws_of(model) "
                "has the laws of the model as it is now"
            )

    @property
    def feedback(self) -> Mapping[str, torch.Tensor]:
        """The live B tensors, where a rule stores B; writing into one changes the next backward pass."""
        states = {name: self.state(name) for name in self.rules}
        return {name: state["B"] for name, state in states.items() if "B" in state}

    def follow(self, optimizer: Optimizer) -> Attachment:
        """Let rules whose feedback learns, or who project their weights, act after each step of ``optimizer``.

        Of several optimizers each moves the rules of its own weights. Steps of all are counted in ``steps``. Returns
        the attachment itself.
        """
        if all(followed is not optimizer for followed, _ in self._followed):
            hook = optimizer.register_step_post_hook(lambda optimizer, *_: self._after_step(optimizer))
            self._followed.append((optimizer, hook))
        return self

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer) -> None:
        self.steps += 1
        own = {id(p) for p in _parameters(optimizer)}
        known = any(id(p) in own for p in self.model.parameters())  # not where it holds copies of the weights
        self._act(lambda weight: weight.requires_grad and (id(weight) in own or not known))

    def state_dict(self) -> dict[str, Any]:
        """What the model's own ``state_dict`` leaves out: rule states by ``<name>.<key>``, steps, a fingerprint."""
        tensors = {f"{n}.{key}": t.detach().clone() for n in self.rules for key, t in self.state(n).items()}
        return {"state": tensors, "steps": self.steps, "fingerprint": self._fingerprint()}

    def _check_fingerprint(self, saved: Mapping[str, Any]) -> None:
        if saved["fingerprint"] != self._fingerprint():
            raise AttachmentError(
                f"the saved state belongs to other rules or weights: expected {self._fingerprint()}, "
                f"got {saved['fingerprint']}"
            )

    def _fingerprint(self) -> str:
        return json.dumps(self._entries(), sort_keys=True)

    def _enter(self) -> None:
        """Become the model's attachment; the last act of attaching."""
        self.model.__dict__[_ATTRIBUTE] = self
        self._watch()

    def _leave(self) -> None:
        for _, handle in self._followed:
            handle.remove()
        _LEARNING.discard(self)
        del self.model.__dict__[_ATTRIBUTE]

    def _watch(self) -> None:
        if any(True for _ in self._learners()):
            _LEARNING.add(self)

    def __getstate__(self) -> dict[str, Any]:
        """Copies follow no optimizer: theirs is another."""
        return {**self.__dict__, "_followed": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        _LEARNING.add(self)  # whether it learns is asked at the next step: here the model is still half a copy

    def __repr__(self) -> str:
        return "Attachment(\n" + "".join(f"  {name}: {what}\n" for name, what in self.coverage.items()) + ")"


def _parameters(optimizer: Optimizer) -> Iterator[torch.Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"])


def _refuse_unfollowed(optimizer: Optimizer, *_: Any) -> None:
    """After every optimizer step anywhere: a learning rule that this step left behind must not go unnoticed."""
    for attachment in _LEARNING:
        if any(followed is optimizer for followed, _ in attachment._followed):
            continue
        stepped = {id(p) for p in _parameters(optimizer)}
        left = {type(rule).__name__ for rule, parameter in attachment._learners() if id(parameter) in stepped}
        if left:
            raise UnfollowedRuleError(
                f"{', '.join(sorted(left))} acts after every step, but {type(optimizer).__name__} stepped without it: "
                "call attachment.follow(optimizer) before training"
            )


register_optimizer_step_post_hook(_refuse_unfollowed)
