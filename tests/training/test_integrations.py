"""lawful inside Lightning, the Hugging Face Trainer and TensorBoard, each on a tiny model."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import lawful
from cases import MLP
from lawful.errors import SettingError
from lawful.training.loop import Training
from lawful.training.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore")  # other people's packages warn about each other


def imported(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"needs the extra with {name}")


# ---------------------------------------------------------------- Lightning


def lightning_module(pl):
    class Regression(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = MLP((4, 8, 8, 2), "tanh").module(dtype=torch.float32)

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            x, y = batch
            return nn.functional.mse_loss(self(x), y)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    return Regression()


def loader():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 4, generator=generator)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x[:, :2] ** 2), batch_size=8)


def fit(pl, rule, folder, epochs, resume=None):
    from lawful.training.integrations.lightning import FeedbackRule

    callback, module = FeedbackRule(rule), lightning_module(pl)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[callback], enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, loader(), ckpt_path=resume)
    return trainer, module, callback.attachment


@pytest.mark.parametrize("rule", [lawful.KolenPollack(), lawful.DirectFeedbackAlignment(scale=0.3)], ids=["kp", "dfa"])
def test_lightning_trains_by_the_rule_and_resumes_bitwise(rule, tmp_path):
    pl = imported("lightning.pytorch")
    _, whole, attachment = fit(pl, rule, tmp_path, 4)
    assert attachment.steps == 12

    by_hand = lightning_module(pl)  # the same loop without Lightning
    follower = lawful.attach(by_hand, rule)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.05, momentum=0.9)
    follower.follow(optimizer)
    for _ in range(4):
        for x, y in loader():
            optimizer.zero_grad()
            nn.functional.mse_loss(by_hand(x), y).backward()
            optimizer.step()
    for ours, theirs in zip(whole.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(ours, theirs)

    trainer, half, _ = fit(pl, rule, tmp_path, 2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    keys = torch.load(tmp_path / "half.ckpt", weights_only=False)["state_dict"].keys()
    assert list(keys) == list(lightning_module(pl).state_dict()), "plain weights"
    _, resumed, again = fit(pl, rule, tmp_path, 4, resume=tmp_path / "half.ckpt")
    assert again.steps == 12
    for ours, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for name, B in attachment.feedback.items():
        assert torch.equal(B, again.feedback[name])


# ---------------------------------------------------------------- Hugging Face


def train_gpt2(transformers, rule, folder, steps, resume=None):
    from lawful.training.integrations.huggingface import FeedbackRuleCallback

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=16, n_positions=8, n_embd=8, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    rows = torch.randint(16, (32, 8), generator=torch.Generator().manual_seed(1))
    callback = FeedbackRuleCallback(model, rule, resume_from=resume)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        learning_rate=0.01, lr_scheduler_type="constant", save_steps=4, logging_strategy="no", report_to=[],
        use_cpu=True, disable_tqdm=True, seed=0, data_seed=0,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return model, callback.attachment


RULES = [lawful.KolenPollack(), lawful.DirectFeedbackAlignment()]


@pytest.mark.parametrize("rule", RULES, ids=["kp", "dfa"])
def test_the_trainer_trains_by_the_rule_and_resumes(rule, tmp_path):
    transformers = imported("transformers")
    imported("accelerate")
    whole, attachment = train_gpt2(transformers, rule, tmp_path / "whole", 8)
    assert attachment.steps == 8
    assert not any("NOT COVERED" in sentence for sentence in attachment.coverage.values())
    resumed, again = train_gpt2(transformers, rule, tmp_path / "resumed", 8, resume=tmp_path / "whole" / "checkpoint-4")
    assert again.steps == 8
    for ours, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    for name, B in attachment.feedback.items():
        assert torch.allclose(B, again.feedback[name], rtol=1e-6, atol=1e-7)


def test_resuming_from_a_foreign_checkpoint_is_refused(tmp_path):
    imported("transformers")
    imported("accelerate")
    from lawful.training.integrations.huggingface import FeedbackRuleCallback

    with pytest.raises(SettingError, match="written with this callback"):
        FeedbackRuleCallback(MLP((2, 3, 1)).module(), lawful.FeedbackAlignment(), resume_from=tmp_path)


# ---------------------------------------------------------------- TensorBoard


def test_tensorboard_has_one_point_an_epoch_also_after_a_kill(tmp_path):
    imported("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from lawful.training.integrations.tensorboard import TensorBoardLog

    training = Training(Settings(examples=64, epochs=2))
    training.run(observers=[TensorBoardLog(tmp_path)])
    training.history.pop()  # its checkpoint was never written: the epoch is trained once more
    records = training.run(observers=[TensorBoardLog(tmp_path)])
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "test/accuracy", "alignment/angle"}
    points = events.Scalars("train/loss")
    assert [point.step for point in points] == [1, 2]
    assert [point.value for point in points] == pytest.approx([record.loss for record in records])
