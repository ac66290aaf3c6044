"""The fields of circuits: against PyTorch with the rule attached, against their transpose, brackets by differences."""

import numpy as np
import pytest
import torch
from peers import EPS, Pair, flattened, float_field, leaf_of, pairs, true_data

import lawful
from lawful.finder import residues as ff
from lawful.finder.circuits import arithmetic
from lawful.finder.circuits.arithmetic import Floats
from lawful.finder.circuits.circuit import backward, forward, tangent
from lawful.finder.circuits.fields import Sample, System, bracket_rows, draw_exactly, random_point
from lawful.finder.circuits.free_data import inverse_roots
from lawful.finder.circuits.networks import NETWORKS
from lawful.finder.circuits.nodes import State
from lawful.finder.families import FAMILIES

PAIRS = pairs()


def torch_rates(pair: Pair, rule, x, e):
    """−gradients with the rule attached, and B, by the circuit's variables."""
    attachment = lawful.attach(pair.model, rule)
    pair.model.zero_grad()
    pair.model(torch.tensor(x)[None]).backward(torch.tensor(e)[None])
    names = dict(pair.model.named_parameters())
    rates = {name: -p.grad for name, p in names.items() if p.grad is not None}
    theta = {name: p.detach().clone() for name, p in names.items()}
    B = {f"{leaf_of(pair, m.name)}.weight": None for m in pair.circuit.maps}
    B = {name: attachment.feedback_of(name) for name in B if not name.startswith("N")}
    size = pair.circuit.size
    result = tuple(flattened(pair, tensors, size) for tensors in (theta, B, rates))
    attachment.remove()
    return result


@pytest.mark.parametrize("rule", [lawful.Backprop(), lawful.FeedbackAlignment(seed=3), lawful.UniformSignSymmetry()],
                         ids=lambda rule: rule.name)  # fmt: skip
@pytest.mark.parametrize("name", PAIRS)
def test_the_field_is_that_of_torch(name, rule):
    pair, rng = PAIRS[name], np.random.default_rng(5)
    x = rng.standard_normal(pair.shape)
    with torch.no_grad():
        shape = pair.model(torch.tensor(x)[None]).shape[1:]
    e = rng.standard_normal(tuple(shape))
    theta, B, expected = torch_rates(pair, rule, x, e)
    field = float_field(pair.circuit, theta, B, x.reshape(1, -1), e.reshape(1, -1))[0]
    np.testing.assert_allclose(field, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_pull_and_push_are_transposes(name):
    circuit, rng = NETWORKS[name](), np.random.default_rng(1)
    theta, B, moved = rng.standard_normal((3, circuit.size))
    x, e = rng.standard_normal((1, circuit.nodes[0].size)), rng.standard_normal((1, circuit.nodes[-1].size))
    s = State(Floats(), theta, B, moved)
    visited = forward(circuit, s, true_data(circuit, x))
    down, up = backward(circuit, s, visited, e)[0] @ moved, -float(tangent(circuit, s, visited)[0] @ e[0])
    assert up == pytest.approx(down, rel=1e-9)


@pytest.fixture
def dual_floats(monkeypatch):
    """The finder's dual numbers, over the reals."""
    monkeypatch.setattr(ff, "reduce", lambda x: x)
    monkeypatch.setattr(ff, "residues_of", lambda values: values.astype(np.float64))
    arithmetic._residues.cache_clear()
    yield
    arithmetic._residues.cache_clear()


@pytest.mark.parametrize("rule", ["bp", "fa", "kp"])
@pytest.mark.parametrize("name", ["attention", "layer norm", "batch norm", "transformer, rms norm"])
def test_brackets_are_differences_of_fields(name, rule, dual_floats):
    circuit, rng = PAIRS[name].circuit, np.random.default_rng(2)
    system = System(circuit, FAMILIES[rule], rng.standard_normal(circuit.size))
    values = 0.7 * rng.standard_normal(2 * circuit.size)
    if rule != "kp":
        values[circuit.size :] = system.exact
    xs = [rng.standard_normal((1, circuit.nodes[0].size)) for _ in range(2)]
    errors = [rng.standard_normal((1, circuit.nodes[-1].size)) for _ in range(2)]

    def field(which, state):
        theta, B = state[: circuit.size], values[circuit.size :].copy()
        if rule == "bp":
            B = theta
        elif rule == "kp":
            B[circuit.feedback] = state[circuit.size :]
        rate = float_field(circuit, theta, B, xs[which], errors[which])[0]
        return np.concatenate([rate, rate[circuit.feedback][: None if rule == "kp" else 0]])

    def along(which, state, direction, h=1e-5):
        return (field(which, state + h * direction) - field(which, state - h * direction)) / (2 * h)

    state = values[system.state]
    expected = along(1, state, field(0, state)) - along(0, state, field(1, state))
    samples = []
    for x, e in zip(xs, errors, strict=True):
        data = {}

        def given(number, inputs, x=x, data=data):
            data[number] = true_data(circuit, x)(number, inputs)
            return data[number]

        forward(circuit, State(Floats(), values[: circuit.size]), given)
        samples.append(Sample(data, e))
    found = bracket_rows(system, values, samples, 1)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["attention-bias", "layer-norm", "layer-norm-0", "transformer-0"])
def test_drawn_data_obey_their_relations(name):
    circuit, rng = NETWORKS[name](), np.random.default_rng(0)
    system = System(circuit, FAMILIES["fa"], np.ones(circuit.size, dtype=object))
    sample = draw_exactly(system, random_point(system, rng), 5, rng)
    assert len(sample.error) == 5
    for number, node in enumerate(circuit.nodes):
        if type(node).__name__ == "Softmax":
            for r in np.unique(node.row):
                assert not np.any((sample.data[number][:, node.row == r].sum(axis=1) - 1) % ff.PRIME)


def test_inverse_roots_are_exact():
    v = np.array([[4.0, 9.0], [25.0, -3.0], [0.0, 1.0]])
    root = inverse_roots(v)
    assert root[0].all() and root[1, 0] and not root[2, 0]
    assert [int(r * r * x) % ff.PRIME for r, x in zip(root[0], v[0], strict=True)] == [1, 1]
    assert 0 < EPS
