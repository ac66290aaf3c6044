"""Time and memory of a training step under feedback rules ÷ plain backpropagation.

Every round times one step of every variant, in rotating order; the table shows the median over rounds of each round's
ratio to that round's backpropagation step. "backprop again" is a second, identical backpropagation model: the spread
that a ratio has by itself. BioTorch joins where it can be imported (pip install --no-deps biotorch==0.0.16).

Run: python benchmarks/training_step.py [--rounds N] [--threads N] [--only NAME …] [--rules RULE …] [--memory]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import importlib.util
import io
import itertools
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import lawful

Step = Callable[[], None]
Build = Callable[[], tuple[nn.Module, torch.Tensor, torch.Tensor]]


def mlp(*widths: int, batch: int = 128) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1]), torch.randn(batch, widths[0]), torch.randint(widths[-1], (batch,))


def cnn() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    blocks = [(3, 32), (32, 64), (64, 128)]
    layers = [m for i, o in blocks for m in (nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 10))
    return model, torch.randn(64, 3, 32, 32), torch.randint(10, (64,))


class Residual(nn.Module):
    """ResNet-18's basic block."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(into, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        short = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.short = short if into != out or stride != 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """relu(F(x) + x)."""
        return torch.relu(self.inner(x) + self.short(x))


def resnet() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    widths = (16, 32, 64, 128)
    blocks = [Residual(widths[max(0, i - 1)], w, 1 + (i > 0)) for i, w in enumerate(widths)]
    seconds = [Residual(w, w, 1) for w in widths]
    stages = [b for pair in zip(blocks, seconds, strict=True) for b in pair]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    model = nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    return model, torch.randn(32, 3, 32, 32), torch.randint(10, (32,))


MODELS: dict[str, Build] = {
    "MLP 784-1024-1024-10, b128": lambda: mlp(784, 1024, 1024, 10),
    "MLP 784-4×1024-10, b128": lambda: mlp(784, 1024, 1024, 1024, 1024, 10),
    "CNN 32/64/128, b64": cnn,
    "ResNet-18-like, b32": resnet,
    "20 × Linear 32, b32": lambda: mlp(*[32] * 21, batch=32),
}

RULES: dict[str, Callable[[], object]] = {
    "backprop again": lawful.Backprop,
    "FA": lawful.FeedbackAlignment,
    "uSF": lawful.UniformSignSymmetry,
    "frSF": lawful.FixedMagnitudeSignSymmetry,
    "brSF": lawful.BatchwiseMagnitudeSignSymmetry,
    "KP": lawful.KolenPollack,
    "KP, decay": lambda: lawful.KolenPollack(decay=1e-4),
    "DFA": lawful.DirectFeedbackAlignment,
}
SKIPPED = {("DFA", "ResNet-18-like, b32"): "residual paths leak"}
BIOTORCH = {"FA": "fa", "uSF": "usf", "frSF": "frsf", "brSF": "brsf", "DFA": "dfa"}


def step_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor, forward: Callable[..., torch.Tensor]) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    if "_lawful_attachment" in model.__dict__:
        lawful.attachment_of(model).follow(optimizer)
    loss = nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        loss(forward(model, x, y, loss), y).backward()
        optimizer.step()

    return step


def plainly(model: nn.Module, x: torch.Tensor, y: torch.Tensor, loss: nn.Module) -> torch.Tensor:
    return model(x)


def with_targets(model: nn.Module, x: torch.Tensor, y: torch.Tensor, loss: nn.Module) -> torch.Tensor:
    return model(x, y, loss)


def import_biotorch() -> types.ModuleType | None:
    """BioTorch's converter, with a stand-in for the torchvision that it imports and does not need here."""
    if importlib.util.find_spec("biotorch") is None:
        return None
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        for name in ("torchvision", "torchvision.models", "torchvision.datasets", "torchvision.transforms"):
            sys.modules[name] = types.ModuleType(name)
    return importlib.import_module("biotorch.module.biomodule")


class _BareFunction(torch.autograd.Function):
    """The least that any feedback layer in Python costs: three products, B given, no rule, no guard."""

    @staticmethod
    def forward(ctx, x, weight, bias, B):
        ctx.save_for_backward(x, B)
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, delta):
        x, B = ctx.saved_tensors
        return delta @ B, delta.t() @ x, delta.sum(0), None


class _BareLinear(nn.Linear):
    def forward(self, x):
        return _BareFunction.apply(x, self.weight, self.bias, self.B)


def bare(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_buffer("B", torch.randn_like(module.weight) / module.in_features**0.5)
            module.__class__ = _BareLinear
    return model


def variants(name: str, outputs: int, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, Step]:
    steps = {"backprop": step_of(copy.deepcopy(model), x, y, plainly)}
    for label, rule in RULES.items():
        if (label, name) in SKIPPED:
            continue
        twin = copy.deepcopy(model)
        lawful.attach(twin, rule())
        steps[label] = step_of(twin, x, y, plainly)
    if "Linear" in name:
        steps["bare Function"] = step_of(bare(copy.deepcopy(model)), x, y, plainly)
    bio = import_biotorch()
    for label, mode in BIOTORCH.items() if bio is not None else ():
        if (label, name) in SKIPPED:
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            twin = bio.BioModule(copy.deepcopy(model), mode=mode, output_dim=outputs)
        steps[f"BioTorch {label}"] = step_of(twin, x, y, with_targets if mode == "dfa" else plainly)
    return steps


def paired(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step in each round."""
    for step in steps.values():
        for _ in range(3):
            step()
    names = list(steps)
    times: dict[str, list[float]] = {n: [] for n in names}
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            start = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - start)
    return times


def ratios(times: dict[str, list[float]]) -> dict[str, float]:
    base = times["backprop"]
    return {n: statistics.median(t / b for t, b in zip(ts, base, strict=True)) for n, ts in times.items()}


def peak_memory(label: str) -> tuple[float, float]:
    """MB of a step of the wide MLP: the most allocated at once beyond its start, and what the rule keeps."""
    torch.manual_seed(0)
    model, x, y = mlp(784, 2048, 2048, 2048, 10, batch=256)
    if label in RULES:
        lawful.attach(model, RULES[label]())
    step = step_of(model, x, y, plainly)
    step()  # momentum buffers, and the feedback of direct rules
    model.zero_grad()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    allocated = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(allocated) / 2**20, sum(b.numel() * b.element_size() for b in model.buffers()) / 2**20


def memory_table() -> None:
    weights = (784 * 2048 + 2 * 2048 * 2048 + 2048 * 10) * 4 / 2**20
    print(f"\nmemory of a step, MLP 784-3×2048-10, b256 (B: {weights:.1f} MB)\n")
    print("| rule | peak beyond the start, MB | kept by the rule, MB |\n|---|---|---|")
    for label in ("backprop", *RULES):
        peak, kept = peak_memory(label)
        print(f"| {label} | {peak:.1f} | {kept:.1f} |")


def main() -> None:
    warnings.filterwarnings("ignore", "Using a non-full backward hook", FutureWarning)  # BioTorch's
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="*", default=list(MODELS), metavar="NAME", help="names that start like this")
    parser.add_argument("--rules", nargs="*", default=list(RULES), metavar="RULE", help=", ".join(RULES))
    parser.add_argument("--memory", action="store_true", help="also measure peak memory")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.rounds} rounds; step ÷ backprop, medians\n")
    for name, build in MODELS.items():
        if not name.startswith(tuple(options.only)):
            continue
        torch.manual_seed(0)
        model, x, y = build()
        layers = sum(p.ndim > 1 for p in model.parameters())
        small = name.startswith("20")
        steps = variants(name, 32 if small else 10, model, x, y)
        steps = {
            n: s
            for n, s in steps.items()
            if n in ("backprop", "bare Function") or n.removeprefix("BioTorch ") in options.rules
        }
        times = paired(steps, options.rounds * (10 if small else 1))
        base = statistics.median(times["backprop"])
        print(f"{name}: backprop {1e3 * base:.2f} ms\n\n| rule | ÷ backprop | extra µs a layer |\n|---|---|---|")
        for label, ratio in ratios(times).items():
            extra = 1e6 * (statistics.median(times[label]) - base) / layers
            print(f"| {label} | {ratio:.3f} | {extra:+.0f} |")
        print(flush=True)
    if options.memory:
        memory_table()


if __name__ == "__main__":
    main()
