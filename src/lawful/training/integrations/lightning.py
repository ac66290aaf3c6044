"""Lightning callbacks that train with a rule and keep its ledger; need ``pip install 'lawful[lightning]'``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
from torch import nn

from lawful.attachment.attachment import LayerAttachment, attach
from lawful.attachment.base import Attachment
from lawful.errors import AttachmentError, SettingError
from lawful.ledger.ledger import Ledger
from lawful.ledger.reading import read
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
        self._watch = ExitStack()

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

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Watches the first ``training_step``, which need not call the module itself."""
        if isinstance(self._attachment, LayerAttachment):
            self._watch = self._attachment.watch_strays()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Any) -> None:
        """Has seen it."""
        self._watch.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Nor does it watch what comes after a failure."""
        self._watch.close()

    def state_dict(self) -> dict[str, Any]:
        """What Lightning's checkpoint keeps: B, rule states and steps."""
        return {} if self._attachment is None else self._attachment.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self.attachment.load_state_dict(state_dict)


class LawLedger(pl.Callback):
    """Keeps a `lawful.Ledger` over ``trainer.fit`` and logs, after every optimizer step, what moved the laws.

    ``Trainer(callbacks=[FeedbackRule(rule), LawLedger()])``. Logged by ``pl_module.log_dict``, so that Lightning's
    ``log_every_n_steps``, its loggers, ``ModelCheckpoint(monitor="ledger/violation")`` and the like apply: the names
    are those of :meth:`lawful.ledger.reading.Reading.scalars`. Accumulated and norm-clipped gradients keep the laws;
    gradients clipped by value do not, and show as a violation.

    Args:
        module: dotted name of the submodule whose laws are followed; the LightningModule itself by default.
        args: example inputs of that module, where its laws cannot be derived without.
        every_n_steps: read the ledger at every n-th step; a reading evaluates every law a few times.

    Attributes:
        ledger: the ledger; exists from the start of training on, and stays after it. A resumed fit opens a new one.
    """

    def __init__(self, *, module: str = "", args: Any = (), every_n_steps: int = 1) -> None:
        self.module, self.args, self.every_n_steps = module, args, every_n_steps
        self.ledger: Ledger | None = None
        self._open = ExitStack()
        self._read_at = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the ledger, after rules were attached and checkpoints restored."""
        if len(trainer.optimizers) != 1:
            raise SettingError(f"LawLedger follows one optimizer; configure_optimizers gave {len(trainer.optimizers)}")
        target = pl_module.get_submodule(self.module)
        self.ledger = self._open.enter_context(Ledger(target, trainer.optimizers[0], args=self.args))
        self._read_at = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs when the batch ended in a step."""
        ledger = self.ledger
        if ledger is not None and ledger.steps > self._read_at and ledger.steps % self.every_n_steps == 0:
            self._read_at = ledger.steps
            pl_module.log_dict(read(ledger).scalars(), on_step=True, on_epoch=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Closes it."""
        self._open.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Closes it."""
        self._open.close()
