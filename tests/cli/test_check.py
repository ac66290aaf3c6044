"""``lawful check`` on right and wrong code, the user's own and somebody else's."""

import pytest
from typer.testing import CliRunner

from lawful.cli.app import app

SOURCE = '''
import torch, lawful
from torch import nn


class Fed(torch.autograd.Function):
    """Somebody's linear layer with feedback; any scale but 1 is a bug."""

    @staticmethod
    def forward(ctx, x, weight, B, scale):
        ctx.save_for_backward(x, B)
        ctx.scale = scale
        return x @ weight.T

    @staticmethod
    def backward(ctx, delta):
        x, B = ctx.saved_tensors
        return delta @ B * ctx.scale, delta.T @ x, None, None


class Theirs(nn.Linear):
    scale = 1.0

    def __init__(self, *sizes):
        super().__init__(*sizes, bias=False)
        self.register_buffer("B", torch.randn_like(self.weight))

    def forward(self, x):
        return Fed.apply(x, self.weight, self.B, self.scale)


def plain():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

def attached():
    model = plain()
    lawful.attach(model, lawful.FeedbackAlignment())
    return model

def theirs(scale=1.0):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), Theirs(4, 2))
    model[2].scale = scale
    return model, torch.randn(5, 3), {"2.weight": model[2].B}

def wrong():
    return theirs(scale=0.5)

def lawless():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

def image():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))

def number():
    return 3
'''


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    (tmp_path / "checked_models.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda *arguments: CliRunner().invoke(app, ["check", *arguments])


@pytest.mark.parametrize(
    "arguments",
    [
        ["checked_models:plain"],
        ["checked_models:plain", "--rule", "fa:seed=3"],
        ["checked_models:attached"],
        ["checked_models:theirs"],
        ["checked_models:image", "--rule", "usf", "--input", "2,1,6,6"],
    ],
)
def test_right_code_passes(invoke, arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert ", 0 violated" in result.output and "✓ ok" in result.output


def test_wrong_code_is_told_where(invoke):
    result = invoke("checked_models:wrong")
    assert result.exit_code == 1
    assert "violated" in result.output and "identity" in result.output and "✗" in result.output


def test_weights_without_a_law_are_named(invoke):
    result = invoke("checked_models:lawless", "--rule", "fa")
    assert "(neuron)" not in result.output, "tanh is not homogeneous"
    assert "no law for 0.weight" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checked_models"], "expected module:factory"),
        (["nowhere_at_all:model"], "No module named 'nowhere_at_all'"),
        (["checked_models:missing"], "has no attribute 'missing'"),
        (["checked_models:number"], "expected a model, (model, inputs) or (model, inputs, feedback)"),
        (["checked_models:image", "--input", "a,b"], "--input: expected positive integers"),
        (["checked_models:image"], "cannot guess an input"),
        (["checked_models:plain", "--rule", "nonsense"], "no rule is called 'nonsense'"),
        (["checked_models:theirs", "--rule", "fa"], "expected rule= or feedback="),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_2(invoke, arguments, message):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
