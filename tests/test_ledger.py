"""The ledger's books against numbers computed by hand, for every kind of optimiser."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lawful
from lawful.conservation.derive import laws_of
from lawful.ledger.ledger import Ledger


def net(rule=None, activation=nn.ReLU, dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 5), nn.LeakyReLU(), nn.Linear(5, 2)).to(dtype)
    if rule is not None:
        lawful.attach(model, rule)
    return model


def train(model, optimizer, steps, seed=1, clip=None, between=None):
    g = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    X, Y = (torch.randn(40, n, generator=g, dtype=torch.float64).to(dtype) for n in (4, 2))
    for _ in range(steps):
        rows = torch.randint(0, 40, (8,), generator=g)
        optimizer.zero_grad()
        (model(X[rows]) - Y[rows]).square().mean().backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if between is not None:
            between()


FA = lawful.FeedbackAlignment(seed=2)
SGD = torch.optim.SGD


@pytest.mark.parametrize("rule", [None, FA], ids=["bp", "fa"])
def test_plain_sgd_conserves_to_rounding_once_the_finite_steps_are_booked(rule):
    model = net(rule)
    optimizer = SGD(model.parameters(), lr=0.05)
    with Ledger(model, optimizer) as ledger:
        train(model, optimizer, 1000)
    assert set(ledger.parts) == {"rule", "finite step"}
    assert float(ledger.residual.max()) <= 1e-12
    assert float(ledger.violation.max()) <= 1e-12
    # the books are not empty: the uncorrected law has moved by far more
    assert float((ledger.values() - ledger.start).abs().max()) > 1e-3


def test_the_finite_step_of_feedback_alignment_is_half_the_squared_steps():
    model = net(FA)
    optimizer = SGD(model.parameters(), lr=0.05)
    total = torch.zeros(6, dtype=torch.float64)
    last = {}

    def measure():
        nonlocal last
        now = [model[0].weight.detach().clone(), model[0].bias.detach().clone()]
        total.add_(0.5 * ((now[0] - last[0]) ** 2).sum(1) + 0.5 * (now[1] - last[1]) ** 2)
        last = now

    last = [model[0].weight.detach().clone(), model[0].bias.detach().clone()]
    with Ledger(model, optimizer, laws_of(model)) as ledger:
        train(model, optimizer, 50, between=measure)
    torch.testing.assert_close(ledger.parts["finite step"][:6], total, rtol=1e-12, atol=0)


def test_weight_decay_is_booked_as_the_formula_says():
    lr, decay = 0.05, 0.1
    model = net(FA)
    B = lawful.attachment_of(model).feedback["2.weight"]
    optimizer = SGD(model.parameters(), lr=lr, weight_decay=decay)
    total = torch.zeros(6, dtype=torch.float64)

    def predict():
        W, b, C = (p.detach() for p in (model[0].weight, model[0].bias, model[2].weight))
        return -lr * decay * ((W**2).sum(1) + b**2 - (B * C).sum(0))

    pending = [predict()]

    def measure():
        total.add_(pending.pop())
        pending.append(predict())

    with Ledger(model, optimizer) as ledger:
        train(model, optimizer, 40, between=measure)
    torch.testing.assert_close(ledger.parts["weight decay"][:6], total, rtol=1e-12, atol=1e-15)


OPTIMISERS = {
    "momentum": lambda p: SGD(p, lr=0.05, momentum=0.9),
    "nesterov+decay": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "maximize": lambda p: SGD(p, lr=1e-3, maximize=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
}


@pytest.mark.parametrize("split_every", [1, 7])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_books_close_for_any_optimiser(name, split_every):
    model = net(FA)
    optimizer = OPTIMISERS[name](model.parameters())
    with Ledger(model, optimizer, split_every=split_every) as ledger:
        train(model, optimizer, 60)
    assert float(ledger.residual.max()) <= 1e-10
    assert float(ledger.violation.max()) <= 1e-12
    assert "between steps" not in ledger.parts
    assert ("optimiser (unsplit)" in ledger.parts) == (name == "nadam")
    assert ("not split" in ledger.parts) == (split_every > 1)


@pytest.mark.parametrize("rule", [None, FA, lawful.KolenPollack(seed=1), lawful.UniformSignSymmetry()], ids=repr)
@pytest.mark.parametrize("name", ["plain", "momentum", "nesterov+decay", "adam"])
def test_the_finite_step_is_the_same_however_seldom_the_rest_is_split(name, rule):
    books = []
    for split_every in (1, 10**9):
        model = net(rule)
        optimizer = {"plain": lambda p: SGD(p, lr=0.05), **OPTIMISERS}[name](model.parameters())
        if isinstance(rule, lawful.KolenPollack):
            lawful.attachment_of(model).follow(optimizer)
        with Ledger(model, optimizer, split_every=split_every) as ledger:
            train(model, optimizer, 20)
        books.append(ledger.parts["finite step"])
    torch.testing.assert_close(books[1], books[0], rtol=1e-11, atol=1e-15)


def test_adam_with_zero_betas_has_no_momentum():
    model = net(FA)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.0, 0.9))
    with Ledger(model, optimizer) as ledger:
        train(model, optimizer, 20)
    assert float(ledger.parts["momentum"].abs().max()) < 1e-15
    assert float(ledger.parts["preconditioning"].abs().max()) > 1e-4


def test_a_law_that_does_not_hold_shows_as_a_violation():
    model = net(FA, activation=nn.Tanh)
    optimizer = SGD(model.parameters(), lr=0.05)
    laws = laws_of(model, force=True).of_kind("neuron")
    with Ledger(model, optimizer, laws) as ledger:
        train(model, optimizer, 50)
    assert float(ledger.violation[:6].max()) > 1e-3
    assert float(ledger.violation[6:].max()) <= 1e-12


def test_unequal_learning_rates_hide_no_violation():
    model = net(FA, activation=nn.Tanh)
    rest = [*model[2].parameters(), *model[4].parameters()]
    optimizer = SGD([{"params": model[0].parameters(), "lr": 0.01}, {"params": rest}], lr=0.05)
    with Ledger(model, optimizer, laws_of(model, force=True).of_kind("neuron")) as ledger:
        train(model, optimizer, 50)
    assert float(ledger.violation[:6].max()) > 1e-3


def test_unequal_learning_rates_are_named():
    model = net(FA)
    groups = [
        {"params": model[0].parameters(), "lr": 0.01},
        {"params": [*model[2].parameters(), *model[4].parameters()]},
    ]
    optimizer = SGD(groups, lr=0.05)
    with Ledger(model, optimizer) as ledger:
        train(model, optimizer, 30)
    assert float(ledger.violation.max()) <= 1e-12
    assert float(ledger.parts["unequal learning rates"][:6].abs().max()) > 1e-4
    assert float(ledger.parts["unequal learning rates"][6:].abs().max()) == 0


def test_frozen_layers_are_named():
    model = net(FA)
    model[2].requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.05)
    with Ledger(model, optimizer) as ledger:
        train(model, optimizer, 30)
    assert "frozen parameters" in ledger.parts
    assert float(ledger.residual.max()) <= 1e-12


@pytest.mark.parametrize("make", [SGD, torch.optim.Adam])
def test_a_learning_rate_of_zero_freezes(make):
    model = net(FA)
    groups = [{"params": layer.parameters(), "lr": lr} for layer, lr in zip(model[::2], (0.05, 0.0, 0.05), strict=True)]
    optimizer = make(groups)
    with Ledger(model, optimizer) as ledger:
        train(model, optimizer, 10)
    assert float(ledger.violation.max()) <= 1e-12
    assert float(ledger.parts["frozen parameters"].abs().max()) > 1e-4
    assert float(ledger.residual.max()) <= 1e-12


def test_clipping_by_the_global_norm_keeps_the_law():
    model = net(FA)
    optimizer = SGD(model.parameters(), lr=0.5)
    with Ledger(model, optimizer) as ledger:
        train(model, optimizer, 30, clip=0.1)
    assert float(ledger.violation.max()) <= 1e-12


def test_edits_between_steps_are_named():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.05)

    def edit():
        with torch.no_grad():
            model[0].weight.mul_(0.999)

    with Ledger(model, optimizer) as ledger:
        train(model, optimizer, 10, between=edit)
    assert float(ledger.parts["between steps"].abs().max()) > 1e-4
    assert float(ledger.residual.max()) <= 1e-12


def test_float32_closes_to_its_own_rounding():
    model = net(FA, dtype=torch.float32)
    optimizer = SGD(model.parameters(), lr=0.05)
    with Ledger(model, optimizer) as ledger:
        train(model, optimizer, 200)
    assert float(ledger.residual.max()) <= 1e-5


def test_history_and_table():
    model = net(FA)
    optimizer = SGD(model.parameters(), lr=0.05)
    with Ledger(model, optimizer, record_every=5) as ledger:
        train(model, optimizer, 20)
    assert [step for step, _, _ in ledger.history] == [5, 10, 15, 20]
    assert [row.law for row in ledger.table] == ["0", "2"]
    assert "finite step" in repr(ledger)
    assert not optimizer._optimizer_step_pre_hooks
    with pytest.raises(lawful.LawfulError, match="split_every"):
        Ledger(model, optimizer, split_every=0)


def test_kolen_pollack_decay_is_booked_and_its_own_movement_is_between_steps():
    model = net(lawful.KolenPollack(seed=1, decay=0.01))
    optimizer = SGD(model.parameters(), lr=0.05)
    lawful.attachment_of(model).follow(optimizer)
    with Ledger(model, optimizer) as ledger:
        train(model, optimizer, 40)
    assert float(ledger.violation.max()) <= 1e-12
    assert float(ledger.residual.max()) <= 1e-12
    assert float(ledger.parts["between steps"].abs().max()) > 1e-4


@pytest.mark.parametrize("rule", [lawful.UniformSignSymmetry(), lawful.FixedMagnitudeSignSymmetry(seed=1)])
def test_sign_rules_close_through_zero_crossings(rule):
    model = net(rule)
    optimizer = SGD(model.parameters(), lr=0.2)
    with Ledger(model, optimizer) as ledger:
        train(model, optimizer, 200)
    assert float(ledger.violation.max()) <= 1e-12
    assert float(ledger.residual.max()) <= 1e-12


def test_a_convolutional_net_with_flatten_and_dropout():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(27, 4),
        nn.ReLU(),
        nn.Linear(4, 2),
    ).double()
    lawful.attach(model, FA)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 1, 8, 8, generator=g, dtype=torch.float64)
    with Ledger(model, optimizer, args=x) as ledger:
        for _ in range(15):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert [row.law for row in ledger.table] == ["0", "5"]
    assert float(ledger.residual.max()) <= 1e-10
    assert float(ledger.violation.max()) <= 1e-12


def test_the_eps_of_a_norm_is_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).double()
    optimizer = SGD(model.parameters(), lr=0.05)
    with Ledger(model, optimizer) as ledger:
        train(model, optimizer, 30)
    assert float(ledger.parts["eps of a norm"].abs().max()) > 1e-9
    assert float(ledger.residual.max()) <= 1e-12
    kinds = [law.kind for law in ledger.laws for _ in law.names]
    exact = torch.tensor([kind == "neuron" for kind in kinds])
    assert float(ledger.violation[exact].max()) <= 1e-12


def test_a_step_with_a_closure_is_booked_with_the_gradients_of_the_closure():
    """As Lightning steps: the gradients in place before the step are those of the step before."""
    books = []
    for with_closure in (False, True):
        model = net(FA)
        optimizer = SGD(model.parameters(), lr=0.05)
        g = torch.Generator().manual_seed(3)
        with Ledger(model, optimizer) as ledger:
            for _ in range(5):
                x = torch.randn(8, 4, generator=g, dtype=torch.float64)

                def closure(model=model, optimizer=optimizer, x=x):
                    optimizer.zero_grad()
                    loss = model(x).square().mean()
                    loss.backward()
                    return loss

                if with_closure:
                    optimizer.step(closure)
                else:
                    closure()
                    optimizer.step()
        assert float(ledger.residual.max()) < 1e-12
        books.append(ledger.parts["finite step"])
    torch.testing.assert_close(*books, rtol=1e-9, atol=1e-15)
