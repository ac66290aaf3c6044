"""The split of a step against formulas: weights copied and gradients taken by the test before the optimiser runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lawful
from lawful.conservation import compiled, loop, neuron
from lawful.conservation.derive import laws_of
from lawful.ledger import causes
from lawful.ledger.ledger import Ledger

SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW


def net(dtype=torch.float64, hidden=(6, 5)):
    torch.manual_seed(0)
    a, b = hidden
    model = nn.Sequential(nn.Linear(4, a), nn.ReLU(), nn.Linear(a, b), nn.LeakyReLU(), nn.Linear(b, 2)).to(dtype)
    lawful.attach(model, lawful.FeedbackAlignment(seed=2))
    return model


def batches(steps, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield tuple(torch.randn(8, n, generator=g, dtype=torch.float64).to(dtype) for n in (4, 2))


def backward(model, optimizer, batch):
    optimizer.zero_grad()
    (model(batch[0]) - batch[1]).square().mean().backward()


def references(model):
    """Slope of each law by autograd, so that nothing of the library's rates is used."""
    laws = laws_of(model)

    def rate(theta, v):
        leaves = {n: w.clone().requires_grad_() for n, w in theta.items()}
        rows = []
        for law in laws:
            with torch.enable_grad():
                q = law.value(leaves)
            for j in range(len(q)):
                grads = torch.autograd.grad(q[j], list(leaves.values()), retain_graph=True, allow_unused=True)
                rows.append(
                    sum((g * v[n]).sum() for n, g in zip(leaves, grads, strict=True) if g is not None and n in v)
                )
        return torch.stack([torch.as_tensor(row, dtype=torch.float64) for row in rows])

    return rate


def expected_parts(name, group, state, w, g, delta):
    """The parts by the formulas of theory, per parameter; the rest goes to the last cause."""
    lr, decay = group["lr"], group["weight_decay"]
    g = -g if group["maximize"] else g
    parts = {"rule": -lr * g}
    if decay:
        parts["weight decay"] = -lr * decay * w
    if name.startswith("sgd"):
        if group["momentum"]:
            parts["momentum"] = delta - sum(parts.values())
        return parts
    if name.startswith("adam"):
        mean = state["exp_avg"] / (1 - group["betas"][0] ** float(state["step"]))
        coupled = 0 if group.get("decoupled_weight_decay") or name.startswith("adamw") else decay
        parts["momentum"] = -lr * (mean - g - coupled * w)
    parts["preconditioning"] = delta - sum(parts.values())
    return parts


CASES = {
    "sgd": lambda p: SGD(p, lr=0.05),
    "sgd decay": lambda p: SGD(p, lr=0.05, weight_decay=0.1),
    "sgd momentum": lambda p: SGD(p, lr=0.05, momentum=0.9),
    "sgd momentum decay": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "sgd dampening": lambda p: SGD(p, lr=0.05, momentum=0.9, dampening=0.3, weight_decay=0.1),
    "sgd nesterov": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "sgd nesterov decay": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "sgd maximize": lambda p: SGD(p, lr=1e-3, momentum=0.9, weight_decay=0.1, maximize=True),
    "sgd foreach": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1, foreach=True),
    "sgd nesterov foreach": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True, foreach=True),
    "sgd nesterov decay foreach": lambda p: SGD(
        p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1, foreach=True
    ),
    "sgd fused": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1, fused=True),
    "sgd nesterov fused": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True, fused=True),
    "sgd lr*decay = 1": lambda p: SGD(p, lr=0.5, weight_decay=2.0),
    "adam": lambda p: Adam(p, lr=0.01, weight_decay=0.1),
    "adam foreach": lambda p: Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True, foreach=True),
    "adam fused": lambda p: Adam(p, lr=0.01, weight_decay=0.1, fused=True),
    "adam maximize": lambda p: Adam(p, lr=1e-3, weight_decay=0.1, maximize=True, foreach=True),
    "adam one step": lambda p: Adam(p, lr=0.01, betas=(0.0, 0.5), eps=1e-3),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw amsgrad": lambda p: AdamW(p, lr=0.01, weight_decay=0.1, amsgrad=True, maximize=True),
    "adam decoupled": lambda p: Adam(p, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "adamw lr*decay = 1": lambda p: AdamW(p, lr=0.5, weight_decay=2.0),
    "adamw fused": lambda p: AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, weight_decay=0.1, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, weight_decay=0.1, lr_decay=0.1, foreach=True),
}


def mismatch(name, hidden=(6, 5)):
    """The largest difference between booked and expected parts, relative to all parts, or the residual of the books."""
    model = net(hidden=hidden)
    optimizer = CASES[name](model.parameters())
    rate, total = references(model), {}
    with Ledger(model, optimizer, laws_of(model).of_kind("neuron", "matrix")) as ledger:
        for batch in batches(6):
            backward(model, optimizer, batch)
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            g = {n: p.grad.clone() for n, p in model.named_parameters()}
            optimizer.step()
            parts: dict[str, dict[str, torch.Tensor]] = {}
            for n, p in model.named_parameters():
                group, state, delta = optimizer.param_groups[0], optimizer.state[p], p.detach() - before[n]
                for cause, part in expected_parts(name, group, state, before[n], g[n], delta).items():
                    parts.setdefault(cause, {})[n] = part
            for cause, v in parts.items():
                total[cause] = total.get(cause, 0) + rate(before, v)
    assert set(ledger.parts) - {"finite step"} == set(total)
    size = torch.stack([part.abs() for part in ledger.parts.values()]).sum(0)
    wrong = [float(((ledger.parts[cause] - part).abs() / size).max()) for cause, part in total.items()]
    return max(*wrong, float(ledger.residual.max()))


@pytest.mark.parametrize("name", CASES)
def test_every_cause_is_the_slope_along_its_part_of_the_step(name):
    assert mismatch(name) <= 1e-10


COMPILED = ("sgd", "sgd momentum decay", "sgd nesterov decay foreach", "adam", "adam foreach", "adamw", "rmsprop")


@pytest.mark.skipif(not compiled.is_available(), reason="needs numba: pip install 'lawful[fast]'")
@pytest.mark.parametrize("name", COMPILED)
def test_every_cause_is_that_slope_where_code_is_compiled(name, monkeypatch):
    read = []
    monkeypatch.setattr(neuron, "COMPILED", 1)
    monkeypatch.setattr(compiled, "kernel", lambda *plan: read.append(plan) or loop.kernel(*plan))
    assert mismatch(name, hidden=(20, 17)) <= 1e-10
    assert len(read) == 6 * 4  # at every step what neuron laws read but the first weight, whose rows are short


@pytest.mark.parametrize("large", [1, 10**9])
@pytest.mark.parametrize("name", CASES)
def test_the_finite_step_alone_is_that_of_the_full_split(name, large, monkeypatch):
    monkeypatch.setattr(neuron, "COMPILED", large)
    parts = []
    for split_every in (1, 10**9):
        model = net(hidden=(20, 17))
        optimizer = CASES[name](model.parameters())
        with Ledger(model, optimizer, split_every=split_every) as ledger:
            for batch in batches(6):
                backward(model, optimizer, batch)
                optimizer.step()
        parts.append(ledger.parts["finite step"])
        assert float(ledger.residual.max()) <= 1e-10
    torch.testing.assert_close(*parts, rtol=1e-9, atol=0)


def test_a_wrong_split_would_be_seen(monkeypatch):
    monkeypatch.setattr(causes, "gradient", lambda optimizer, group, p: causes.Combination(p.grad))
    assert mismatch("sgd nesterov decay") <= 1e-10  # here the gradient is left alone …
    assert mismatch("sgd nesterov foreach") > 1e-3  # … and here torch adds the momentum to it in place
    monkeypatch.setitem(causes.SPLITS, Adam, causes._adamw)
    assert mismatch("adam") > 1e-3


OTHERS = {
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "a subclass": lambda p: type("Mine", (SGD,), {})(p, lr=0.01, momentum=0.9),
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_unknown_optimiser_is_not_guessed_at(name):
    model = net()
    optimizer = OTHERS[name](model.parameters())
    with Ledger(model, optimizer) as ledger:
        for batch in batches(20):
            backward(model, optimizer, batch)
            optimizer.step()
    assert set(ledger.parts) == {"rule", "finite step", "optimiser (unsplit)"}
    assert float(ledger.residual.max()) <= 1e-10 and float(ledger.violation.max()) <= 1e-12


@pytest.mark.parametrize("make", [Adam, AdamW])
def test_the_step_of_adam_is_not_told_from_numbers_that_torch_rounds(make):
    """lr and β that are float32 tensors make torch take its bias corrections in float32."""
    model, betas = net(), (torch.tensor(0.8), torch.tensor(0.9))
    optimizer = make(model.parameters(), lr=torch.tensor(0.01), betas=betas, foreach=False)
    with Ledger(model, optimizer) as ledger:
        for batch in batches(20):
            backward(model, optimizer, batch)
            optimizer.step()
    assert float(ledger.residual.max()) <= 1e-10


def test_a_line_search_leaves_no_gradient_at_the_weights_before_the_step():
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    with Ledger(model, optimizer) as ledger:
        for batch in batches(3):

            def closure(batch=batch):
                backward(model, optimizer, batch)
                return (model(batch[0]) - batch[1]).square().mean()

            optimizer.step(closure)
    assert set(ledger.parts) == {"finite step", "optimiser (unsplit)"}
    assert float(ledger.residual.max()) <= 1e-10


@pytest.mark.parametrize("name", ["sgd", "sgd nesterov decay", "adam"])
def test_a_closure_is_booked_by_the_gradient_it_took(name):
    """The gradients left over from before the step must not be booked."""
    model = net()
    optimizer = CASES[name](model.parameters())
    with Ledger(model, optimizer) as ledger:
        for batch in batches(10):

            def closure(batch=batch):
                with torch.enable_grad():
                    backward(model, optimizer, batch)
                    return torch.zeros(())

            optimizer.step(closure)
    assert float(ledger.residual.max()) <= 1e-10 and float(ledger.violation.max()) <= 1e-12


def test_schedulers_groups_and_accumulation():
    model = net()
    groups = [
        {"params": model[0].parameters(), "lr": 0.02, "weight_decay": 0.1},
        {"params": [*model[2].parameters(), *model[4].parameters()], "momentum": 0.9},
    ]
    optimizer = SGD(groups, lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    with Ledger(model, optimizer) as ledger:
        for _ in range(10):
            optimizer.zero_grad()
            for batch in batches(3):
                (model(batch[0]) - batch[1]).square().mean().div(3).backward()
            nn.utils.clip_grad_value_(model.parameters(), 1e6)
            optimizer.step()
            scheduler.step()
    assert {"rule", "unequal learning rates", "weight decay", "momentum"} <= set(ledger.parts)
    assert float(ledger.residual.max()) <= 1e-10 and float(ledger.violation.max()) <= 1e-12


@pytest.mark.parametrize("name", ["sgd", "sgd momentum decay", "adam", "adamw"])
def test_float32_keeps_the_stated_bound(name):
    model, steps = net(torch.float32), 300
    optimizer = CASES[name](model.parameters())
    size = torch.zeros(())
    with Ledger(model, optimizer) as ledger:
        for batch in batches(steps, torch.float32):
            theta = {n: p.detach() for n, p in model.named_parameters()}
            # ‖W_p‖² + b² + ⟨|B|, |W_c|⟩
            size = torch.maximum(size, torch.cat([law.magnitude(theta, theta) for law in ledger.laws]))
            backward(model, optimizer, batch)
            optimizer.step()
    assert bool((ledger.residual * ledger.scale <= steps * 2**-23 * size).all())
    assert bool((ledger.residual * ledger.scale <= steps**0.5 * 2**-23 * size).all())  # what is seen
    assert float(ledger.residual.max()) <= 1e-5


def test_decay_that_is_rounded_alike_at_every_step_does_not_add_up():
    """lr·λ is two units in the last place of 1: every step rounds W·(1 − lr·λ) to the same side."""
    model, steps = net(torch.float32), 1000
    optimizer = AdamW(model.parameters(), lr=1e-5, weight_decay=0.01)
    with Ledger(model, optimizer) as ledger:
        theta = {n: p.detach().clone() for n, p in model.named_parameters()}
        size = torch.cat([law.magnitude(theta, theta) for law in ledger.laws])
        for batch in batches(steps, torch.float32):
            backward(model, optimizer, batch)
            optimizer.step()
    assert bool((ledger.residual * ledger.scale <= steps**0.5 * 2**-23 * size).all())
