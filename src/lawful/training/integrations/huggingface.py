"""Hugging Face Trainer callbacks that train with a rule and keep its ledger; need ``lawful[huggingface]``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from torch.optim import Optimizer
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lawful.attachment.attachment import attach
from lawful.attachment.base import Attachment
from lawful.errors import SettingError
from lawful.ledger.ledger import Ledger
from lawful.ledger.reading import read
from lawful.rules.base import Rule
from lawful.rules.direct_base import DirectRule
from lawful.training import checkpoint

_FOLDER = "lawful"


class FeedbackRuleCallback(TrainerCallback):
    """Attaches ``rule`` to the model, follows the Trainer's optimizer, and writes B beside each of its checkpoints.

    ``Trainer(model=model, callbacks=[FeedbackRuleCallback(model, lawful.DirectFeedbackAlignment())])``. To resume, give
    the same checkpoint twice: ``FeedbackRuleCallback(model, rule, resume_from=folder)`` and
    ``trainer.train(resume_from_checkpoint=folder)``.

    Args:
        model: the model that the Trainer gets.
        rule: what to train with; a mapping from name patterns to rules works too.
        resume_from: a checkpoint folder of the Trainer, written with this callback.
        strict: as in :func:`lawful.attach`.

    Attributes:
        attachment: the attachment.

    Raises:
        SettingError: ``resume_from`` holds nothing of lawful.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rule: Rule | DirectRule | dict[str, Rule],
        *,
        resume_from: str | Path | None = None,
        strict: bool = True,
    ) -> None:
        self.attachment: Attachment = attach(model, rule, strict=strict)
        if resume_from is not None:
            folder = Path(resume_from) / _FOLDER
            if not folder.is_dir():
                raise SettingError(f"resume_from expects a checkpoint written with this callback; {folder} is missing")
            self.attachment.load_state_dict(checkpoint.load(folder))

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Follows the optimizer that really steps, inside accelerate's wrapper."""
        if optimizer is not None:
            self.attachment.follow(_inner(optimizer))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes B, rule states and steps into the Trainer's checkpoint folder."""
        if state.is_world_process_zero and args.output_dir is not None:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / _FOLDER
            checkpoint.save(self.attachment.state_dict(), folder)


class LawLedgerCallback(TrainerCallback):
    """Keeps a `lawful.Ledger` while a Trainer trains; its readings join the Trainer's log at every logging step.

    ``Trainer(callbacks=[FeedbackRuleCallback(model, rule), LawLedgerCallback(model, args=(tokens,))])``. They are in
    ``trainer.state.log_history`` and ``trainer_state.json``, beside the losses, under the names of
    :meth:`lawful.ledger.reading.Reading.scalars`; reporters such as TensorBoard are called before any callback of
    yours, so for them call :func:`lawful.training.integrations.tensorboard.log_ledger` on ``ledger``.

    Args:
        model: the model that the Trainer gets.
        args: example inputs of the model, where its laws cannot be derived without.

    Attributes:
        ledger: the ledger; exists from the start of training on, and stays. A resumed training opens a new one.
    """

    def __init__(self, model: PreTrainedModel, *, args: Any = ()) -> None:
        self.model, self.args = model, args
        self.ledger: Ledger | None = None
        self._open = ExitStack()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Opens the ledger on the optimizer that really steps."""
        if optimizer is not None:
            self.ledger = self._open.enter_context(Ledger(self.model, _inner(optimizer), args=self.args))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Adds the reading to the entry just logged."""
        if self.ledger is not None and state.log_history:
            state.log_history[-1].update(read(self.ledger).scalars())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Closes it."""
        self._open.close()


def _inner(optimizer: Optimizer) -> Optimizer:
    """The optimizer that really steps, inside accelerate's wrapper."""
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
