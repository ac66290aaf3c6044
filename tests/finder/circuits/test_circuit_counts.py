"""Counts of circuits: against the theory's laws counted by hand, and against the laws that lawful derives elsewhere."""

import numpy as np
import pytest
import torch
from peers import pairs
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import lawful
from lawful import find_laws
from lawful.errors import SettingError
from lawful.finder.circuits import networks
from lawful.finder.circuits.build import Builder
from lawful.finder.circuits.networks import NETWORKS
from lawful.finder.circuits.proof import is_law
from lawful.finder.circuits.search import find_circuit_laws

HANDMADE = [
    ("conv", "fa", 2),  # one a channel
    ("conv-deep", "bp", 4),
    ("residual", "bp", 2 + 3),  # two neurons, and the matrix law of the stream
    ("residual", "fa", 2 + 3 + 2),  # and a row of W2 that no error reaches
    ("residual-wide", "fa", 2 + 6 + 2),
    ("rnn", "kp", 2 + 6),  # and W − B of the loop and the readout
    ("gated", "bp", 4),  # the linear factor, and the gate
    ("attention", "bp", 3 + 3),  # query-key and value-output matrices
    ("attention", "fa", 3 + 3),
    ("attention", "kp", 3 + 3 + 4),
    ("attention", "usf", 3 + 3),  # a constant B in an orthant
    ("attention-bias", "bp", 3 + 3 + 2),  # and the key biases
    ("attention-bias", "fa", 3 + 3 + 2 + 2),  # and b_V − Bᵀ b_O
    ("attention-1-output", "fa", 3 + 3 + 1),  # V moves only along the feedback
    ("attention-2-heads", "fa", 2 * 6),
    ("attention-2-heads-bias", "bp", 2 * 8),
    ("linear-attention", "bp", 3 + 3 + 1),  # and the scale that scores may hand to the values
    ("rms-norm", "fa", 3),  # γ
    ("rms-norm-0", "fa", 3 + 1),  # and the scale in front
    ("layer-norm", "fa", 3 + 2 + 1),  # γ and β; column sums of W1 and b1
    ("layer-norm-0", "bp", 3 + 3 + 1),
    ("batch-norm", "fa", 2 + 2),  # γ and β; b1
    ("batch-norm-0", "fa", 2 + 2 + 2),
    ("transformer", "bp", 3 + 3 + 2 + 2 + 2),  # heads, two norms, two neurons
    ("transformer-0", "fa", 12 + 1),  # and one scale for all writers of the stream
]


@pytest.mark.parametrize(("name", "rule", "count"), HANDMADE, ids=[f"{n}-{r}" for n, r, _ in HANDMADE])
def test_counts_by_hand(name, rule, count):
    found = find_circuit_laws(NETWORKS[name](), rule=rule)
    assert (found.count, found.bound, found.certified) == (count, count, True)


def test_kinds_of_laws_are_recognised():
    found = find_circuit_laws(NETWORKS["transformer-layer-norm-0"](), rule="bp")
    kinds = {law.kind for law in found.laws}
    assert {"query-key", "norm", "neuron", "constant", "shift"} <= kinds
    names = [law.name for law in find_circuit_laws(NETWORKS["layer-norm-0"](), rule="fa").laws]
    assert "scale law of W1 in front of a norm, all channels" in names
    assert "norm law of γ, channel 1" in names


def test_laws_of_swapped_heads_are_refused():
    found = find_circuit_laws(networks.attention(2, 2, 2, 1, 1), rule="fa")
    law = next(law for law in found.laws if law.name.startswith("query-key law of Q1 and K1"))
    at = {m.name: [int(v) for v in m.weight_at.ravel()] for m in found.system.circuit.maps}
    swap = dict(zip(at["K1"] + at["K2"], at["K2"] + at["K1"], strict=True))
    swapped = {tuple(sorted(swap.get(n, n) for n in m)): c for m, c in law.terms.items()}
    assert is_law(found.system, law.terms, numeric=False)
    assert not is_law(found.system, swapped, numeric=False)


@pytest.mark.parametrize("name", ["attention-bias", "layer-norm-0", "transformer", "conv"])
def test_every_changed_coefficient_is_refused(name):
    found = find_circuit_laws(NETWORKS[name](), rule="fa")
    for law in found.laws[-3:]:
        monomial = next(iter(law.terms))
        changed = {**law.terms, monomial: 3 * law.terms[monomial]}
        assert len(changed) == 1 or not is_law(found.system, changed, numeric=law.numeric)


def test_scale_law_needs_epsilon_zero():
    found = find_circuit_laws(NETWORKS["rms-norm-0"](), rule="fa")
    law = next(law for law in found.laws if law.kind == "scale")
    generic = find_circuit_laws(NETWORKS["rms-norm"](), rule="fa")
    assert not is_law(generic.system, law.terms, numeric=False)


def test_softmax_outputs_add_column_sums():
    free = find_circuit_laws(networks.gated(2, 2, 3, bias=True), rule="fa")
    softmax = find_circuit_laws(networks.gated(2, 2, 3, bias=True), rule="fa", output="softmax")
    assert softmax.certified and softmax.count == free.count + 2 + 1


PAIRS = pairs()


@pytest.mark.parametrize("rule", [lawful.Backprop(), lawful.FeedbackAlignment(seed=1)], ids=lambda rule: rule.name)
@pytest.mark.parametrize("name", ["attention", "layer norm", "gated", "rnn", "conv"])
def test_laws_derived_from_the_torch_model_are_as_many(name, rule):
    """laws_of traces the model; the rank of its gradients is the number of independent laws that it found."""
    pair = PAIRS[name]
    attachment = lawful.attach(pair.model, rule)
    laws = lawful.laws_of(pair.model, (torch.randn(1, *pair.shape, dtype=torch.float64),))
    theta = {n: p.detach().clone().requires_grad_() for n, p in pair.model.named_parameters()}
    rows = []
    for law in laws:
        for q in law.value(theta).reshape(-1):
            slopes = torch.autograd.grad(q, list(theta.values()), allow_unused=True, retain_graph=True)
            rows.append(torch.cat([torch.zeros_like(p).ravel() if g is None else g.ravel()
                                   for g, p in zip(slopes, theta.values(), strict=True)]).numpy())  # fmt: skip
    attachment.remove()
    derived = [law.note for law in laws]
    exact = [row for row, note in zip(rows, np.repeat(derived, [len(law.names) for law in laws]), strict=True)
             if not note]  # fmt: skip
    assert np.linalg.matrix_rank(np.stack(exact)) == find_circuit_laws(pair.circuit, rule=rule.name).count


def test_values_at_a_torch_model():
    model = nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 1)).double()
    attachment = lawful.attach(model, lawful.FeedbackAlignment(seed=0))
    found = find_laws(model, rule="fa", shape=(1, 4))
    feedback = {"3.weight": attachment.feedback_of("3.weight")}
    state = model.state_dict()
    for j, law in enumerate(found.laws):
        block = slice(3 * j, 3 * j + 3)
        q = 0.5 * (state["0.weight"][j] ** 2).sum() + 0.5 * state["0.bias"][j] ** 2
        q = q - (feedback["3.weight"][0, block] * state["3.weight"][0, block]).sum()
        assert law.value(state, feedback) == pytest.approx(float(q), rel=1e-12)
    with pytest.raises(SettingError, match=r"B\(3\.weight"):
        found.laws[0].value(state)
    given = find_laws(model, rule="fa", shape=(1, 4), B=feedback)
    assert given.certified and given.count == 2


@pytest.mark.parametrize(
    ("module", "shape", "count"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 2, stride=2, padding=1), nn.LeakyReLU(), nn.AvgPool2d(2), nn.Flatten(),
                       nn.Linear(2, 1)), (1, 3, 3), 2),
        (nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.ReLU(), nn.Linear(3, 2)), None, 3 + 3),
        (nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.RMSNorm(3)), nn.Linear(3, 2)), None, 3),
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.Linear(2, 2)), None, 3 + 3 + 2),
    ],
    ids=["conv2d", "layer norm", "rms norm", "mixed"],
)  # fmt: skip
def test_modules(module, shape, count):
    found = find_laws(module, rule="fa", shape=shape)
    assert (found.count, found.certified) == (count, True)


SHARED, TIED = nn.ReLU(), nn.Linear(2, 2, bias=False)


class Skip(nn.Sequential):
    """A Sequential in name only."""

    def forward(self, x):
        return x + super().forward(x)


def test_leaves_that_are_used_twice():
    again = nn.Sequential(nn.Linear(2, 3), SHARED, nn.Linear(3, 3), SHARED, nn.Linear(3, 1))
    assert find_laws(again, rule="fa").count == find_laws([2, 3, 3, 1], rule="fa", bias=True).count == 6
    net = Builder()
    both = net.map("0.weight", 2, 2)
    h = net.relu(net.dense(net.relu(net.dense(net.input(2), both)), both))
    circuit = net.circuit("by hand", net.dense(h, net.map("4.weight", 1, 2, bias="4.bias")))
    tied = nn.Sequential(TIED, SHARED, TIED, SHARED, nn.Linear(2, 1))
    assert find_laws(tied, rule="bp").count == find_laws(circuit, rule="bp").count
    assert find_laws(tied, rule="bp").dimension == circuit.size == 4 + 3


def test_the_activation_is_where_the_module_has_it():
    """Not between the layers: the network below it is linear, and its output a ReLU."""
    above = find_laws(nn.Sequential(nn.Linear(2, 3, False), nn.Linear(3, 1, False), nn.ReLU()), rule="fa")
    assert (above.count, above.certified) == (find_laws([2, 3, 1], rule="fa", activation="linear").count, True)


@pytest.mark.parametrize(
    ("source", "options", "part"),
    [
        (
            nn.Sequential(Skip(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), nn.Linear(2, 1)),
            {},
            "cannot read Skip at 0",
        ),
        (Skip(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), {}, "cannot read Skip"),
        (
            nn.Sequential(weight_norm(nn.Linear(2, 3)), nn.ReLU(), nn.Linear(3, 2)),
            {},
            "0 .ParametrizedLinear. has a parametrization",
        ),
        (nn.Sequential(nn.Linear(2, 3), nn.LeakyReLU(1.0), nn.Linear(3, 2)), {}, "slope 1"),
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(2, 2)), {}, "reads 2"),
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), {"shape": (3,)}, "expected 2 features"),
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), {"activation": "linear"}, "a module has its own"),
        (nn.Sequential(nn.Conv1d(1, 2, 2)), {"shape": 4}, "shape must be whole"),
        (nn.Sequential(nn.Conv1d(1, 2, 2)), {"shape": (1, 2.0)}, "shape must be whole"),
        (nn.Sequential(nn.ReLU()), {"shape": (4,)}, "no parameters"),
        ([2, 3, 1], {"shape": (2,)}, "option of modules"),
        (NETWORKS["attention"](), {"shape": (2,)}, "option of modules"),
        (NETWORKS["attention"](), {"B": {"O": np.full((2, 2), np.nan)}}, "B of O must be finite"),
        (NETWORKS["attention"](), {"B": {"O": [["a", "b"], ["c", "d"]]}}, "B of O must hold real numbers"),
        (nn.Sequential(nn.Conv1d(1, 2, 2), nn.Tanh()), {"shape": (1, 4)}, "cannot read Tanh at 1"),
        (nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU()), {}, "shape="),
        (nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU()), {"shape": (1, 1)}, "too small"),
        (nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU()), {"shape": (2, 4)}, "channels"),
        (NETWORKS["attention"](), {"rule": "dfa"}, "fully connected"),
        (NETWORKS["conv"](), {"rule": "usf"}, "orthant"),
        (NETWORKS["attention"](), {"geometry": "decay"}, "geometry"),
        (NETWORKS["attention"](), {"degree": 3}, "degree"),
        (NETWORKS["attention"](), {"B": {"O": np.ones((1, 1))}}, "shapes"),
        (NETWORKS["attention"](), {"B": [np.ones((2, 2))]}, "mapping"),
        (networks.attention(2, 8, 2, 8, 8), {}, "up to 400"),
        (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2, eps=0)), {}, "at least 3 units"),
    ],
)
def test_bad_input_says_what_is_allowed(source, options, part):
    with pytest.raises(SettingError, match=part):
        find_laws(source, **{"rule": "fa", **options})
