"""lawful inside Lightning, the Hugging Face Trainer and TensorBoard, each on a tiny model."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import lawful
from cases import MLP
from lawful.errors import CoverageError, SettingError
from lawful.ledger.reading import read
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


def lightning_ledger(pl, folder, rule, **options):
    """What Lightning logged of the laws, step by step, with gradients of two batches accumulated and clipped."""
    from lightning.pytorch.loggers.logger import DummyLogger

    from lawful.training.integrations.lightning import FeedbackRule, LawLedger

    rows: dict[int, dict[str, float]] = {}

    class Memory(DummyLogger):
        def log_metrics(self, metrics, step=None):
            rows.setdefault(int(step), {}).update({k: v for k, v in metrics.items() if k.startswith("ledger/")})

    module, callback = relu_module(pl), LawLedger(module="net")
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=Memory(), enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[FeedbackRule(rule, module="net"), callback], enable_checkpointing=False,
        accumulate_grad_batches=2, log_every_n_steps=1, **options,
    )  # fmt: skip
    trainer.fit(module, relu_loader())
    return [rows[step] for step in sorted(rows) if rows[step]], callback.ledger


def relu_module(pl, momentum=0.0):
    kind = type(lightning_module(pl))

    class Regression(kind):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=momentum)

    module = Regression()
    module.net = MLP((4, 8, 8, 2), "relu").module(dtype=torch.float64)
    return module


def relu_loader():
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x[:, :2] ** 2), batch_size=6)


def plain_ledger(net, rule, clip=None, epochs=3):
    """The same loop by hand: the parts after every step, and Σ½|Δ|² of the first layer written out."""
    lawful.attach(net, rule)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    parts, drift, (first, bias, *_) = [], 0.0, list(net.parameters())
    with lawful.Ledger(net, optimizer) as ledger:
        for _ in range(epochs):
            for at, (x, y) in enumerate(relu_loader()):
                (nn.functional.mse_loss(net(x), y) / 2).backward()
                if at % 2:
                    if clip is not None:
                        torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
                    before = first.detach().clone(), bias.detach().clone()
                    optimizer.step()
                    moved = (first.detach() - before[0]), (bias.detach() - before[1])
                    drift += 0.5 * sum(float(delta.square().sum()) for delta in moved)
                    optimizer.zero_grad()
                    parts.append({cause: float(part.abs().sum()) for cause, part in ledger.parts.items()})
    return parts, drift


@pytest.mark.parametrize("clip", [None, 0.05], ids=["accumulated", "clipped"])
def test_lightning_logs_the_ledger_of_the_same_loop_by_hand(clip, tmp_path):
    pl = imported("lightning.pytorch")
    rule = lawful.FeedbackAlignment(seed=3)
    logged, ledger = lightning_ledger(pl, tmp_path, rule, gradient_clip_val=clip)
    parts, drift = plain_ledger(relu_module(pl).net, rule, clip)
    assert len(logged) == len(parts) == 6
    for row, expected in zip(logged, parts, strict=True):
        assert row["ledger/parts/finite step"] == pytest.approx(expected["finite step"], rel=1e-6)
        assert row["ledger/violation"] < 1e-10 and row["ledger/residual"] < 1e-10
    first = len(ledger.laws[0].names)
    assert float(ledger.parts["finite step"][:first].sum()) == pytest.approx(drift, rel=1e-9)
    moved = [name for name in logged[-1] if name.startswith("ledger/moved")]
    assert moved == ["ledger/moved"] and logged[-1]["ledger/moved"] > 0
    assert read(ledger).worst.startswith("neuron ")


def test_lightning_watches_a_training_step_that_calls_parts_of_the_module(tmp_path):
    pl = imported("lightning.pytorch")

    def step(self, batch, index):
        x, y = batch
        h = self.net[:-1](x)
        return nn.functional.mse_loss(nn.functional.linear(h, self.net[-1].weight, self.net[-1].bias), y)

    make = lightning_module
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "lightning_module", lambda pl: _with_step(make(pl), step))
        with pytest.raises(CoverageError, match=r"net\.4\.weight is multiplied with by linear"):
            fit(pl, lawful.FeedbackAlignment(), tmp_path, 1)


def _with_step(module, step):
    type(module).training_step = step
    return module


def test_lightning_clipping_by_value_shows_as_a_violation(tmp_path):
    pl = imported("lightning.pytorch")
    options = {"gradient_clip_val": 0.005, "gradient_clip_algorithm": "value"}
    logged, _ = lightning_ledger(pl, tmp_path, lawful.FeedbackAlignment(seed=3), **options)
    assert logged[-1]["ledger/violation"] > 1e-3 and logged[-1]["ledger/residual"] < 1e-10


def test_lightning_ledger_follows_one_optimizer(tmp_path):
    pl = imported("lightning.pytorch")
    from lawful.training.integrations.lightning import LawLedger

    class Trainer:
        optimizers = ()

    with pytest.raises(SettingError, match="one optimizer; configure_optimizers gave 0"):
        LawLedger().on_train_start(Trainer(), relu_module(pl))


# ---------------------------------------------------------------- Hugging Face


def gpt2(transformers):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        activation_function="relu", bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    rows = torch.randint(16, (6, 8), generator=torch.Generator().manual_seed(1))
    return transformers.GPT2LMHeadModel(config).double(), rows


def labels_of(rows):
    """The tokens; the first, which nothing predicts, is marked, since the Trainer divides by the number of labels."""
    return torch.cat([torch.full_like(rows[:, :1], -100), rows[:, 1:]], 1)


def test_the_trainer_logs_the_ledger_of_the_same_loop_by_hand(tmp_path):
    transformers = imported("transformers")
    imported("accelerate")
    from lawful.training.integrations.huggingface import LawLedgerCallback

    model, rows = gpt2(transformers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    callback = LawLedgerCallback(model, args=(rows[:2],))
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=3, gradient_accumulation_steps=2,
        max_grad_norm=0, lr_scheduler_type="constant", save_strategy="no", logging_steps=1, report_to=[],
        use_cpu=True, disable_tqdm=True, seed=0,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=arguments, optimizers=(optimizer, None), callbacks=[callback],
        train_dataset=[{"input_ids": row, "labels": target} for row, target in zip(rows, labels_of(rows), strict=True)],
    )  # fmt: skip
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]

    by_hand, rows = gpt2(transformers)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.5)
    with lawful.Ledger(by_hand, optimizer, args=(rows[:2],)) as ledger:
        for at in range(4):  # an epoch is one step, so the order of the rows does not matter
            optimizer.zero_grad()
            for half in rows.split(3):
                (by_hand(half, labels=labels_of(half)).loss / 2).backward()
            optimizer.step()
            for cause in ("finite step", "momentum"):
                expected = float(ledger.parts[cause].abs().sum())
                assert logged[at][f"ledger/parts/{cause}"] == pytest.approx(expected, rel=1e-6, abs=1e-12)
            assert logged[at]["ledger/residual"] < 1e-10
    assert len(logged) == 4 and callback.ledger.steps == 4


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


def test_tensorboard_has_the_ledger_of_a_plain_loop(tmp_path):
    imported("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    from lawful.training.integrations.tensorboard import log_ledger

    net, x = MLP((4, 8, 2), "relu").module(dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    W, b, V, _ = (p.detach() for p in net.parameters())
    expected, decay = [], torch.zeros(8, dtype=torch.float64)
    with SummaryWriter(str(tmp_path)) as writer, lawful.Ledger(net, optimizer) as ledger:
        for _ in range(3):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            decay -= 0.1 * 0.1 * ((W**2).sum(1) + b**2 - (V**2).sum(0))  # −ηλ⟨∇q, θ⟩ = −2ηλq, neuron by neuron
            expected.append(float(decay.abs().sum()))
            optimizer.step()
            log_ledger(writer, ledger)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    points = events.Scalars("ledger/parts/weight decay")
    assert [point.step for point in points] == [1, 2, 3]
    assert [point.value for point in points] == pytest.approx(expected, rel=1e-6)
    assert "ledger/moved" in events.Tags()["scalars"]
