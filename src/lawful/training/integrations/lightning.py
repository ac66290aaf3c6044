"""A Lightning callback that trains with a rule; needs the package lightning (``pip install 'lawful[lightning]'``)."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import nn

from lawful.attachment.attachment import attach
from lawful.attachment.base import Attachment
from lawful.errors import AttachmentError
from lawful.rules.base import Rule
from lawful.rules.direct_base import DirectRule


class FeedbackRule(pl.Callback):
    """Attaches ``rule`` when a fit begins, follows the optimizers, and keeps B in Lightning's checkpoints.

    ``Trainer(callbacks=[FeedbackRule(lawful.FeedbackAlignment(seed=1))])``; the LightningModule stays unedited.

    Args:
        rule: what to train with; a mapping from name patterns to rules works too.
        module: dotted name of the submodule that is trained by it; the LightningModule itself by default. For a direct
            rule this must be the module that ``training_step`` calls.
        strict: as in :func:`lawful.attach`.
    """

    def __init__(self, rule: Rule | DirectRule | dict[str, Rule], *, module: str = "", strict: bool = True) -> None:
        self.rule = rule
        self.module = module
        self.strict = strict
        self._attachment: Attachment | None = None

    @property
    def attachment(self) -> Attachment:
        """The attachment; exists from the first fit on."""
        if self._attachment is None:
            raise AttachmentError("the rule is attached when trainer.fit begins: it has not begun yet")
        return self._attachment

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Attaches, before the checkpoint is restored."""
        if stage == "fit" and self._attachment is None:
            target: nn.Module = pl_module.get_submodule(self.module)
            self._attachment = attach(target, self.rule, strict=self.strict)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Follows every optimizer."""
        for optimizer in trainer.optimizers:
            self.attachment.follow(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """What Lightning's checkpoint keeps: B, rule states and steps."""
        return {} if self._attachment is None else self._attachment.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self.attachment.load_state_dict(state_dict)
