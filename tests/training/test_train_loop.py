"""The training loop: it learns, resumes bitwise after any kill, and says in one line what is wrong."""

from __future__ import annotations

import inspect
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

import lawful
from lawful.cli.app import app
from lawful.data.base import classification, shuffled_split
from lawful.data.registry import load_data
from lawful.errors import AttachmentError, DivergenceError, SettingError
from lawful.training import checkpoint
from lawful.training.alignment import gradient_angle
from lawful.training.loop import Training, open_run, saved_settings
from lawful.training.settings import Settings, make_optimizer

SMALL = Settings(examples=256, epochs=3, lr=0.003)


def weights(training):
    return {name: tensor.clone() for name, tensor in training.model.state_dict().items()}


def records(training):
    return [replace(record, seconds=0) for record in training.history]


def assert_same(one, two):
    assert records(one) == records(two)
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(two)[name]), name
    ours, theirs = one.attachment.state_dict(), two.attachment.state_dict()
    assert ours["steps"] == theirs["steps"] and ours["state"].keys() == theirs["state"].keys()
    for name, tensor in ours["state"].items():
        assert torch.equal(tensor, theirs["state"][name]), name


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "kp", "wm", "brsf", "drtp"])
def test_a_resumed_run_equals_the_uninterrupted_one_bitwise(rule, tmp_path):
    whole = Training(replace(SMALL, rule=rule))
    whole.run()
    first = open_run(replace(SMALL, rule=rule, epochs=2), tmp_path, resume=False)
    first.run(tmp_path)
    torch.manual_seed(99), torch.rand(7)  # whatever happens in between
    second = open_run(replace(SMALL, rule=rule), tmp_path, resume=True)
    assert len(second.history) == 2
    second.run(tmp_path)
    assert_same(whole, second)
    assert len(json.loads((tmp_path / "history.json").read_text())) == 3


class Noisy(nn.Sequential):
    """Dropout draws from torch's global stream, and this from NumPy's and Python's."""

    def forward(self, x):
        import random

        return super().forward(x) * (1 + 0.1 * np.random.rand() + 0.1 * random.random())


def noisy():
    return Noisy(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.BatchNorm1d(32), nn.Linear(32, 10))


def test_every_random_stream_and_buffer_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "__spec__", None, raising=False)
    sys.modules["noisy_models"] = sys.modules[__name__]
    setting = replace(SMALL, model="noisy_models:noisy", rule="fa", optimizer="sgd:momentum=0.9")

    def seeded(seed=3):
        import random

        np.random.seed(seed)
        random.seed(seed)

    seeded()
    whole = Training(setting)
    whole.run()
    seeded()
    open_run(replace(setting, epochs=1), tmp_path, resume=False).run(tmp_path)
    seeded(8)  # another process
    second = open_run(setting, tmp_path, resume=True)
    second.run(tmp_path)
    assert_same(whole, second)


COMMAND = [
    sys.executable, "-m", "lawful", "train", "--model", "cnn", "--examples", "640", "--rule", "fa", "--epochs", "6",
    "--batch", "16", "--resume", "--out",
]  # fmt: skip


def test_kill_minus_nine_loses_at_most_the_current_epoch(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = tmp_path / "killed"
    process = subprocess.Popen([*COMMAND, str(killed)], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    next(line for line in process.stdout if line.startswith("epoch   2/6"))
    time.sleep(0.02)  # into the next epoch
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    newest = checkpoint.latest(killed)
    assert newest is not None
    reached = len(checkpoint.load(newest)["history"])
    assert 2 <= reached < 6, "a finished epoch was lost, or the process was not killed in time"
    finished = subprocess.run([*COMMAND, str(killed)], env=environment, capture_output=True, text=True, check=True)
    assert f"resumed after epoch {reached} of 6" in finished.stdout
    torch.set_num_threads(1)
    whole = Training(Settings(model="cnn", examples=640, rule="fa", epochs=6, batch=16))
    whole.run()
    resumed = open_run(whole.settings, killed, resume=True)
    assert_same(whole, resumed)


def test_an_unfinished_checkpoint_is_never_taken_for_one(tmp_path, monkeypatch):
    """Whatever step of writing a process dies in, the newest whole checkpoint is found."""
    open_run(replace(SMALL, epochs=1), tmp_path, resume=False).run(tmp_path)
    for victim in ("save_file", "_sync", "json"):
        training = open_run(replace(SMALL, epochs=2), tmp_path, resume=True)
        with monkeypatch.context() as patch, pytest.raises((TypeError, AttributeError)):
            patch.setattr(checkpoint, victim, None)
            training.run(tmp_path)
        assert [path.name for path in sorted(tmp_path.glob("checkpoint-*"))] == ["checkpoint-00000", "checkpoint-00001"]
    training = open_run(replace(SMALL, epochs=2), tmp_path, resume=True)
    assert len(training.history) == 1
    training.run(tmp_path)
    assert not list(tmp_path.glob(".*"))
    whole = Training(replace(SMALL, epochs=2))
    whole.run()
    assert_same(whole, training)


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=12,
)


@given(value=NESTED)
@settings(max_examples=60, deadline=None)
def test_packing_is_undone_exactly(value):
    tensors = {}
    text = json.dumps(checkpoint.pack(value, tensors))
    back = checkpoint.unpack(json.loads(text), tensors)
    assert back == value and repr(back) == repr(value), "types too"


def test_what_cannot_be_packed_is_named():
    with pytest.raises(SettingError, match=r"class 'object'.* at '/state/3'"):
        checkpoint.pack({"state": {3: object()}}, {})


@pytest.mark.parametrize(
    ("model", "data", "rule", "chance"),
    [("mlp", "digits", "dfa", 0.1), ("cnn", "digits", "usf", 0.1), ("transformer", "text", "dfa", 0.16)],
)
def test_it_learns(model, data, rule, chance):
    loaded = load_data(data)
    loaded = replace(loaded, x_test=loaded.x_test[:200], y_test=loaded.y_test[:200])
    chosen = Settings(model=model, data=data, rule=rule, examples=600, epochs=3, lr=0.003, batch=32)
    training = Training(chosen, loaded)
    history = training.run()
    assert history[-1].loss < history[0].loss
    assert history[-1].accuracy > chance
    assert 0 < history[-1].angle < 90


def test_the_angle_is_zero_for_backprop_and_leaves_the_model_alone():
    training = Training(replace(SMALL, rule="bp"))
    x, y = training.data.x[:32], training.data.y[:32]
    before, random = weights(training), torch.get_rng_state()

    def loss(model):
        return nn.functional.cross_entropy(model(x), y)

    assert gradient_angle(training.model, loss) == pytest.approx(0, abs=1e-5)
    assert all(torch.equal(before[n], t) for n, t in weights(training).items())
    assert torch.equal(random, torch.get_rng_state()) and all(p.grad is None for p in training.model.parameters())
    fed = Training(replace(SMALL, rule="fa"))
    angle = gradient_angle(fed.model, loss)
    loss(fed.model).backward()
    ours = torch.cat([p.grad.flatten() for p in fed.model.parameters()])
    fed.attachment.remove()
    fed.model.zero_grad()
    loss(fed.model).backward()
    theirs = torch.cat([p.grad.flatten() for p in fed.model.parameters()])
    expected = math.degrees(math.acos(float(torch.cosine_similarity(ours, theirs, dim=0))))
    assert angle == pytest.approx(expected, abs=1e-3)


def test_the_lr_that_diverges_is_named():
    with pytest.raises(DivergenceError, match=r"in epoch 1: lower the learning rate \(lr is 1e\+09\)"):
        Training(replace(SMALL, optimizer="sgd", lr=1e9)).run()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "no"], "no rule is called 'no'"),
        (["--data", "imagenet"], "data must be one of digits, mnist5k, fashion, mnist1d, text; got 'imagenet'"),
        (["--model", "resnet"], "model must be one of mlp, cnn, gru, transformer, or module:factory; got 'resnet'"),
        (["--model", "math:pi2"], "model 'math:pi2': module 'math' has no attribute 'pi2'"),
        (["--model", "builtins:dict"], "expected dict() to return an nn.Module; got dict"),
        (["--model", "torch.nn:Identity", "--rule", "bp"], "got an empty parameter list"),
        (["--model", "gru"], "model 'gru' expects series"),
        (["--model", "mlp", "--data", "text"], "model 'mlp' reads no tokens"),
        (["--optimizer", "sgd:speed=9"], "optimizer 'sgd' has no option 'speed'"),
        (["--optimizer", "sgd:9"], "expected option=value"),
        (["--optimizer", "adam:betas=(2,2)"], "Invalid beta parameter"),
        (["--epochs", "-1"], "epochs must be an integer >= 0; got -1"),
        (["--lr", "nan"], "lr must be a positive number; got nan"),
        (["--examples", "999999"], "examples must lie in 1 … 1500"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_2(arguments, message, tmp_path):
    result = CliRunner().invoke(app, ["train", *arguments, "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_command_trains_resumes_and_prolongs(tmp_path):
    run = str(tmp_path / "run")
    base = ["train", "--examples", "128", "--epochs", "1", "--rule", "dfa", "--out", run]
    first = CliRunner().invoke(app, base)
    assert first.exit_code == 0, first.output
    assert "epoch   1/1  loss" in first.output and "angle to backprop" in first.output
    again = CliRunner().invoke(app, base)
    assert again.exit_code == 2 and "add --resume" in again.stderr
    changed = CliRunner().invoke(app, [*base, "--resume", "--lr", "0.5"])
    assert changed.exit_code == 2 and "lr was 0.001, is 0.5" in changed.stderr
    longer = CliRunner().invoke(app, ["train", "--resume", "--out", run, "--epochs", "2"])
    assert longer.exit_code == 0 and "resumed after epoch 1 of 2" in longer.output
    assert saved_settings(tmp_path / "run") == Settings(examples=128, epochs=2, rule="dfa")
    assert not list(tmp_path.rglob("*.p*kl*")), "no pickle"


def test_every_setting_but_epochs_names_the_folder():
    assert replace(SMALL, epochs=9).digest == SMALL.digest != replace(SMALL, lr=0.1).digest


def test_a_run_of_another_rule_is_refused_by_its_attachment():
    one, two = Training(replace(SMALL, rule="fa")), Training(replace(SMALL, rule="fa:seed=1"))
    with pytest.raises(AttachmentError, match="other rules"):
        two.attachment.load_state_dict(one.attachment.state_dict())


def test_any_optimizer_of_torch():
    parameters = [nn.Parameter(torch.zeros(2))]
    made = make_optimizer("AdamW:betas=(0.8, 0.9),weight_decay=0.1", parameters, 0.5)
    assert isinstance(made, torch.optim.AdamW)
    assert made.defaults["betas"] == (0.8, 0.9) and made.defaults["lr"] == 0.5


OPTIMIZERS = sorted(name.lower() for name, kind in vars(torch.optim).items() if inspect.isclass(kind))


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "optimizer"])
def test_every_optimizer_trains_or_is_refused_at_the_start(name):
    """Muon takes matrices alone, SparseAdam sparse gradients."""
    settings = replace(SMALL, optimizer=name, epochs=1, rule="kp:decay=0.001")
    if name in ("muon", "sparseadam"):
        with pytest.raises(SettingError, match=f"{name}"):
            Training(settings)
        return
    training = Training(settings)
    before = weights(training)
    training.run()
    assert math.isfinite(training.history[-1].loss)
    assert any(not torch.equal(now, before[key]) for key, now in weights(training).items())


def test_data_are_standardised_and_split_for_good():
    x = np.arange(40.0).reshape(20, 2)
    train, test = shuffled_split(x, np.arange(20) % 3, test=5)
    data = classification("toy", train, test)
    assert data.outputs == 3 and data.input_shape == (2,) and not data.is_text
    assert abs(float(data.x.mean())) < 1e-6 and abs(float(data.x.std(correction=0)) - 1) < 1e-6
    assert sorted([*train[0][:, 0], *test[0][:, 0]]) == list(x[:, 0])
    again, _ = shuffled_split(x, np.arange(20) % 3, test=5)
    assert np.array_equal(train[0], again[0])
    assert lawful.attachment_of(Training(SMALL).model)
