"""A Hugging Face Trainer callback that trains with a rule; needs ``pip install 'lawful[huggingface]'``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from torch.optim import Optimizer
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lawful.attachment.attachment import attach
from lawful.attachment.base import Attachment
from lawful.errors import SettingError
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
        inner = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
        if inner is not None:
            self.attachment.follow(inner)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes B, rule states and steps into the Trainer's checkpoint folder."""
        if state.is_world_process_zero and args.output_dir is not None:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / _FOLDER
            checkpoint.save(self.attachment.state_dict(), folder)
