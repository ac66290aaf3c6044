"""What users do to a ledger besides training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lawful
from lawful.conservation.derive import laws_of
from lawful.errors import AttachmentError, NoLawError
from lawful.ledger.ledger import Ledger
from lawful.ledger.reading import read

SGD = torch.optim.SGD


def net(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).to(dtype)


def step(model, optimizer, x=None):
    optimizer.zero_grad()
    x = torch.linspace(-1, 1, 12).reshape(3, 4) if x is None else x
    model(x.to(next(model.parameters()).dtype) if x.is_floating_point() else x).square().mean().backward()
    optimizer.step()


def test_a_ledger_is_entered_once_at_a_time_and_starts_new_books():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    ledger = Ledger(model, optimizer)
    with ledger:
        step(model, optimizer)
        with pytest.raises(lawful.LawfulError, match="in use"), ledger:
            pass
    assert ledger.steps == 1
    step(model, optimizer)  # nobody looks
    with ledger:
        step(model, optimizer)
        step(model, optimizer)
    assert ledger.steps == 2 and "between steps" not in ledger.parts
    assert float(ledger.residual.max()) <= 1e-12
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_another_models_optimizer_is_refused():
    model = net()
    with pytest.raises(lawful.LawfulError, match=r"holds none .*0\.weight"):
        Ledger(model, SGD(net().parameters(), lr=0.1))


def test_a_model_without_laws_has_an_empty_table_and_says_why():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Ledger(model, optimizer, record_every=1) as ledger:
        step(model, optimizer)
        step(model, optimizer)
    assert ledger.table == [] and ledger.names == () and ledger.steps == 2
    for ask in (lambda: ledger.residual, lambda: ledger.violation, lambda: read(ledger)):
        with pytest.raises(NoLawError, match=r"no law.*0\.weight: tanh is not homogeneous"):
            ask()
    assert "no laws" in repr(ledger) and "tanh is not homogeneous" in repr(ledger)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_model_that_changes_its_precision_goes_on(momentum):
    model = net(torch.float32)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=momentum)
    with Ledger(model, optimizer) as ledger:
        for _ in range(3):
            step(model, optimizer)
        model.double()
        for _ in range(3):
            step(model, optimizer)
    assert float(ledger.residual.max()) <= 1e-6 and float(ledger.violation.max()) <= 1e-6


def test_going_to_lower_precision_is_an_edit():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with Ledger(model, optimizer) as ledger:
        step(model, optimizer)
        model.float()
    assert float(ledger.parts["between steps"].abs().max()) > 1e-12
    assert float(ledger.residual.max()) <= 1e-15


def test_assigning_data_is_an_edit():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with Ledger(model, optimizer) as ledger:
        step(model, optimizer)
        model[0].weight.data = model[0].weight.data * 0.9
        step(model, optimizer)
    assert float(ledger.parts["between steps"].abs().max()) > 1e-4
    assert float(ledger.residual.max()) <= 1e-12


def test_an_edit_through_data_leaves_a_residual():
    """Torch does not tell, so the books cannot; what is done to the parameter itself is booked."""
    for edit, told in ((lambda p: p.data.mul_(0.9), False), (lambda p: p.mul_(0.9), True)):
        model = net()
        optimizer = SGD(model.parameters(), lr=0.1)
        with Ledger(model, optimizer) as ledger:
            step(model, optimizer)
            with torch.no_grad():
                edit(model[0].weight)
            step(model, optimizer)
        assert ("between steps" in ledger.parts) is told
        assert (float(ledger.residual.max()) <= 1e-12) is told


@pytest.mark.parametrize(
    "rule",
    [lawful.FeedbackAlignment(), lawful.KolenPollack(), lawful.UniformSignSymmetry(), lawful.LowRankFeedback(1)],
    ids=lambda rule: type(rule).__name__,
)
def test_a_rule_that_is_removed_while_its_laws_are_watched(rule):
    model = net()
    attachment = lawful.attach(model, rule)
    optimizer = SGD(model.parameters(), lr=0.1)
    attachment.follow(optimizer)
    with pytest.raises(AttachmentError, match=r"fed 2\.weight back has been removed"):
        with Ledger(model, optimizer) as ledger:
            step(model, optimizer)
            assert attachment.attached and float(ledger.residual.max()) <= 1e-12
            attachment.remove()
            assert not attachment.attached
            step(model, optimizer)
    with pytest.raises(AttachmentError, match=r"lawful\.laws_of\(model\)"):
        ledger.values()


def test_a_direct_rule_that_is_removed_while_its_laws_are_watched():
    model = net()
    attachment = lawful.attach(model, lawful.DirectFeedbackAlignment())
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(AttachmentError, match="fed 1 back has been removed"):
        with Ledger(model, optimizer, args=torch.ones(3, 4).double()):
            step(model, optimizer)
            attachment.remove()
            step(model, optimizer)


def test_a_parameter_with_two_names_is_booked_under_both():
    model = net()
    model.alias = model[0]
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    laws = laws_of(nn.Sequential(*list(net())))
    with Ledger(model, optimizer, laws) as ledger:
        for _ in range(5):
            optimizer.zero_grad()
            model[2](model[1](model[0](torch.ones(3, 4).double()))).square().mean().backward()
            optimizer.step()
    assert set(ledger.parts) == {"rule", "finite step", "momentum"}
    assert float(ledger.violation.max()) <= 1e-12


def embedded(sparse):
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 6, sparse=sparse), nn.ReLU(), nn.Linear(6, 2)).double()


@pytest.mark.parametrize("split_every", [1, 10**9])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str)
def test_sparse_gradients_count_like_dense_ones(options, split_every):
    found = []
    for sparse in (True, False):
        model = embedded(sparse)
        optimizer = SGD(model.parameters(), lr=0.1, **options)
        with Ledger(model, optimizer, split_every=split_every) as ledger:
            for k in range(4):
                step(model, optimizer, torch.tensor([[k, 1, 1]]))
        assert float(ledger.residual.max()) <= 1e-12 and float(ledger.violation.max()) <= 1e-12
        found.append(ledger.parts["finite step"])
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)
    assert float(found[0].abs().max()) > 1e-6


def test_an_optimiser_of_sparse_gradients_alone():
    model = embedded(True)
    for p in model[2].parameters():
        p.requires_grad_(False)
    optimizer = torch.optim.SparseAdam(model[0].parameters(), lr=0.1)
    with Ledger(model, optimizer) as ledger:
        step(model, optimizer, torch.tensor([[1, 2, 2]]))
    assert float(ledger.residual.max()) <= 1e-12


def test_complex_parameters_are_refused():
    model = net()
    model[0].weight = nn.Parameter(model[0].weight.detach() + 0j)
    with pytest.raises(lawful.LawfulError, match="complex"):
        Ledger(model, SGD(model.parameters(), lr=0.1), laws_of(net()))


def test_a_step_that_fails_leaves_books_that_can_be_read():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)

    def fails():
        raise KeyError

    with Ledger(model, optimizer) as ledger:
        step(model, optimizer)
        with pytest.raises(KeyError):
            optimizer.step(fails)
        step(model, optimizer)
        assert float(ledger.residual.max()) <= 1e-12
    assert ledger.steps == 2


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("make", [SGD, torch.optim.Adam])
def test_a_gradient_scaler(make, fused):
    """Scaled gradients are unscaled before they are booked; a step that overflow skips books nothing."""
    model = net(torch.float32)
    plain = net(torch.float32)
    optimizer = make(model.parameters(), lr=0.125, fused=fused)
    other = make(plain.parameters(), lr=0.125, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x = torch.linspace(-1, 1, 12).reshape(3, 4)
    with Ledger(model, optimizer) as ledger, Ledger(plain, other) as reference:
        for k in range(5):
            optimizer.zero_grad()
            loss = model(x).square().mean() * (torch.inf if k == 2 else 1)
            scaler.scale(loss).backward()
            held = {cause: part.clone() for cause, part in ledger.parts.items()}
            scaler.step(optimizer)
            scaler.update()
            if k == 2:
                assert all(torch.equal(part, held[cause]) for cause, part in ledger.parts.items())
            else:
                step(plain, other, x)
    assert ledger.steps == 4 and "between steps" not in ledger.parts
    for cause, part in reference.parts.items():
        torch.testing.assert_close(ledger.parts[cause], part, rtol=1e-4, atol=1e-7)
    assert float(ledger.residual.max()) <= 1e-6 and float(ledger.violation.max()) <= 1e-6


def test_saved_books_stay_as_they_were_saved():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with Ledger(model, optimizer, record_every=1) as ledger:
        step(model, optimizer)
        saved = ledger.state_dict()
        booked = saved["parts"]["finite step"].clone()
        step(model, optimizer)
        assert torch.equal(saved["parts"]["finite step"], booked) and len(saved["history"]) == 1


def test_books_are_loaded_inside_with_and_for_the_same_laws():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with Ledger(model, optimizer) as ledger:
        step(model, optimizer)
        saved = ledger.state_dict()
    with pytest.raises(lawful.LawfulError, match="inside `with`"):
        Ledger(model, optimizer).load_state_dict(saved)
    fewer = laws_of(model).of_kind("bias", "shift")
    with Ledger(model, optimizer, fewer) as other, pytest.raises(lawful.LawfulError, match="of the same laws"):
        other.load_state_dict(saved)


def test_a_law_that_starts_at_zero_has_moved_by_all_of_itself_or_not_at_all():
    """As with biases that start at zero: q = 0, and what rounding does to it is no movement."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)).double()
    for layer in model:
        nn.init.zeros_(layer.bias)
    lawful.attach(model, lawful.FeedbackAlignment(seed=1))
    laws = laws_of(model).of_kind("bias")
    for optimizer, moved in ((SGD(model.parameters(), lr=0.1), 0.0), (torch.optim.Adam(model.parameters()), 1.0)):
        with Ledger(model, optimizer, laws) as ledger:
            for _ in range(5):
                step(model, optimizer)
        assert read(ledger).moved == moved


@pytest.mark.parametrize("wrong", [0.0, 1e-6])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_biases_that_start_at_zero_in_front_of_softmax_and_norm_show_a_violation_and_only_that(momentum, wrong):
    """Their gradients cancel to rounding, which is no part of zero but of the errors that cancel."""
    for seed in range(4):
        torch.manual_seed(seed)
        model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
        attend = model.self_attn
        attend.in_proj_bias.register_hook(lambda g: g + wrong)  # the keys' share of it is a fault
        x, y = torch.randn(4, 5, 8).double(), torch.randn(4, 5, 8).double()
        optimizer = SGD(model.parameters(), lr=0.1, momentum=momentum)
        with Ledger(model, optimizer, args=(x,)) as ledger:
            for _ in range(10):
                optimizer.zero_grad()
                (model(x) - y).square().mean().backward()
                optimizer.step()
        assert any(law.kind == "shift" for law in ledger.laws)
        assert ledger.residual.max() < 1e-10
        keys = [i for i, law in enumerate(ledger.names) if "in_proj_bias[8:16]" in law]
        assert len(keys) == 8
        assert (ledger.violation[keys].min() > 0.1) if wrong else (ledger.violation[keys].max() < 1e-10)
        assert wrong or ledger.violation.max() < 1e-10


class Apart(nn.Module):
    """A bias that does not live in the module of its weight."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.out = nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.Linear(6, 2)
        self.b = nn.Parameter(torch.zeros(6))

    def forward(self, x):
        return self.out(self.norm(nn.functional.linear(x, self.fc.weight, self.b)).relu())


def test_a_bias_apart_from_its_weight_shows_no_violation():
    torch.manual_seed(0)
    model, x = Apart().double(), torch.randn(16, 4).double()
    optimizer = SGD(model.parameters(), lr=0.1)
    with Ledger(model, optimizer, args=(x,)) as ledger:
        for _ in range(10):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert any(name.endswith("b[0]") for name in ledger.names)
    shifts = [i for i, name in enumerate(ledger.names) if "b[" in name]
    assert ledger.violation[shifts].max() < 1e-10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_long_runs_in_low_precision_show_a_violation_and_only_that(dtype, factor):
    """200 steps in bfloat16: rounding is a random walk of 14 steps, not 200 of them, and hides no wrong error."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5)).to(dtype)
    nn.init.zeros_(model[2].bias)
    optimizer = SGD(model.parameters(), lr=0.05)
    laws = laws_of(model, output="softmax").of_kind("neuron", "shift")
    model[2].register_full_backward_hook(lambda module, into, out: (into[0] * factor,))
    x, classes = torch.randn(256, 8).to(dtype), torch.randint(0, 5, (256,))
    with Ledger(model, optimizer, laws) as ledger:
        for k in range(200):
            batch = torch.arange(32) + 32 * (k % 8)
            optimizer.zero_grad()
            logits = model(x[batch]).to(torch.promote_types(dtype, torch.float32))
            nn.functional.cross_entropy(logits, classes[batch]).backward()
            optimizer.step()
    violation = dict(zip(ledger.names, ledger.violation.tolist(), strict=True))
    neurons = [v for name, v in violation.items() if "neuron" in name]
    assert len(neurons) == 16
    assert (max(neurons) > 0.05) == (factor != 1)
    assert max(neurons) < 0.01 or factor != 1
    assert violation["2 · Σ_j 2.bias[j]"] == 0  # it starts at zero, and only rounding moves it


@pytest.mark.parametrize("make", [SGD, torch.optim.Adam])
def test_when_the_books_are_read_makes_no_difference(make):
    """Steps that are not split are summed up when somebody asks: at the end, after every step, in the middle of one."""
    found = []
    for when in ("the end", "every step", "inside"):
        model = net()
        optimizer = make(model.parameters(), lr=0.01)
        with Ledger(model, optimizer, split_every=10**9) as ledger:
            if when == "inside":
                optimizer.register_step_pre_hook(lambda *_, ledger=ledger: print(ledger.parts))
            for _ in range(6):
                step(model, optimizer)
                if when == "every step":
                    assert float(ledger.residual.max()) <= 1e-12
        assert float(ledger.residual.max()) <= 1e-12
        found.append(ledger.parts["finite step"])
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(found[2], found[0], rtol=1e-12, atol=0)


def test_steps_that_nobody_asked_about_stay_out_of_other_books():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.01)
    ledger = Ledger(model, optimizer, split_every=10**9)
    with ledger:
        step(model, optimizer)
        step(model, optimizer)
        saved = ledger.state_dict()
        step(model, optimizer)
        ledger.load_state_dict(saved)
        assert torch.equal(ledger.parts["finite step"], saved["parts"]["finite step"])
        step(model, optimizer)
    with ledger:
        assert not ledger.parts


def test_feedback_that_moves_during_a_step_is_an_edit_between_steps():
    model = net()
    attachment = lawful.attach(model, lawful.FeedbackAlignment())
    optimizer = SGD(model.parameters(), lr=0.01)
    with Ledger(model, optimizer) as ledger:
        optimizer.register_step_pre_hook(lambda *_: print(attachment.state("2.weight")["B"].mul_(1.5)))
        step(model, optimizer)
    assert float(ledger.residual.max()) <= 1e-12
    assert float(ledger.parts["between steps"].abs().max()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_step_in_half_precision_is_the_difference_of_the_weights_to_more_than_that(dtype):
    model = net(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3, eps=1e-4)
    drift = torch.zeros(6, dtype=torch.float64)
    with Ledger(model, optimizer, split_every=10**9) as ledger:
        for _ in range(4):
            before = {n: p.detach().double() for n, p in model.named_parameters()}
            step(model, optimizer)
            moved = {n: p.detach().double() - before[n] for n, p in model.named_parameters()}
            (law,) = ledger.laws
            drift += law.drift(before, moved)
    torch.testing.assert_close(ledger.parts["finite step"], drift, rtol=1e-5, atol=1e-6)
