"""Softmax weights, roots and ReLU patterns are drawn as data only where they are free: else the network is refused."""

import json

import numpy as np
import pytest
from torch import nn

from lawful.errors import SettingError
from lawful.finder.certificate import digest
from lawful.finder.circuits import networks
from lawful.finder.circuits.build import Builder
from lawful.finder.circuits.free_data import obstacle, patterns, refuse_dependent
from lawful.finder.circuits.modules import circuit_of
from lawful.finder.circuits.networks import NETWORKS
from lawful.finder.circuits.nodes import Softmax
from lawful.finder.circuits.search import find_circuit_laws
from lawful.finder.circuits.verify import verify_circuit_certificate


class Attention:
    """Heads of width 2 over ``tokens`` tokens of width 2, whose weights may depend on each other."""

    def __init__(self, tokens=2):
        self.net, self.tokens = Builder(), tokens
        self.x = self.net.input(2 * tokens)
        self.pairs = [(q, k) for q in range(tokens) for k in range(tokens)]

    def map(self, name):
        return self.net.dense(self.x, self.net.map(name, 2, 2), self.tokens)

    def scores(self, queries, keys):
        places = [(s, 2 * q + c, 2 * k + c) for s, (q, k) in enumerate(self.pairs) for c in range(2)]
        return self.net.product(queries, keys, len(self.pairs), places)

    def parameters(self):
        """One learned number a score, whatever the data."""
        learned = self.net.map("c", len(self.pairs), 1).weight_at[:, 0]
        return self.net.affine(self.x, np.full((len(self.pairs), 2 * self.tokens), -1), learned)

    def circuit(self, *scores):
        net, heads = self.net, []
        places = [(2 * q + c, s, 2 * k + c) for s, (q, k) in enumerate(self.pairs) for c in range(2)]
        for number, score in enumerate(scores):
            P = net.softmax(score, [q for q, _ in self.pairs])
            heads.append(net.product(P, self.map(f"V{number}"), 2 * self.tokens, places))
        mixed = net.join(*heads)
        return net.circuit("heads", net.dense(mixed, net.map("O", 1, net.size(mixed))))


def equal():
    a = Attention()
    s = a.scores(a.map("Q"), a.map("K"))
    return a.circuit(s, s)


def dependent():
    a = Attention()
    s, t = a.scores(a.map("Q"), a.map("K")), a.scores(a.map("R"), a.map("L"))
    return a.circuit(s, t, a.net.add(s, s, t))


def shifted():
    a = Attention()
    s = a.scores(a.map("Q"), a.map("K"))
    return a.circuit(s, a.net.add(s, a.parameters()))


def learned():
    a = Attention()
    return a.circuit(a.parameters())


def symmetric(tokens):
    """Q = K: of three tokens, P12 P23 P31 = P13 P32 P21."""
    a = Attention(tokens)
    q = a.map("Q")
    return a.circuit(a.scores(q, q))


def of_softmax(*, same):
    """A softmax of the weights of another one; ``same``: a third one of the same weights doubled."""
    a = Attention()
    P = a.net.softmax(a.scores(a.map("Q"), a.map("K")), [q for q, _ in a.pairs])
    return a.circuit(P, a.net.add(P, P)) if same else a.circuit(P)


@pytest.mark.parametrize(
    ("circuit", "last"),
    [(equal(), 2), (dependent(), 3), (shifted(), 2), (learned(), 1), (symmetric(3), 1), (of_softmax(same=True), 2)],
    ids=["equal", "dependent", "shifted", "learned", "symmetric", "of a softmax"],
)
def test_dependent_scores_are_refused_by_name(circuit, last):
    nodes = [number for number, node in enumerate(circuit.nodes) if isinstance(node, Softmax)][-last:]
    with pytest.raises(SettingError, match=" and ".join(f"softmax node {n}" for n in nodes) + " obey a relation"):
        find_circuit_laws(circuit, rule="fa")


def test_the_relation_of_symmetric_scores_is_real():
    S = np.random.default_rng(0).standard_normal((3, 3))
    P = np.exp(S + S.T) / np.exp(S + S.T).sum(axis=1, keepdims=True)
    assert P[0, 1] * P[1, 2] * P[2, 0] == pytest.approx(P[0, 2] * P[2, 1] * P[1, 0], rel=1e-14)


@pytest.mark.parametrize(
    "circuit",
    [symmetric(2), of_softmax(same=False), networks.attention(2, 1, 5, 1, 1), *(make() for make in NETWORKS.values())],
    ids=["symmetric", "of a softmax", "five heads of one number", *NETWORKS],
)
def test_free_weights_and_roots_are_accepted(circuit):
    refuse_dependent(circuit)


def normed_twice(epsilon):
    net = Builder()
    h = net.dense(net.input(2), net.map("W", 3, 2))
    twice = [net.normalise(h, [0] * 3, centre=False, epsilon=epsilon) for _ in range(2)]
    return net.circuit("twice", net.dense(net.join(*twice), net.map("V", 1, 6)))


def test_roots_of_one_variance_have_one_sign():
    with pytest.raises(SettingError, match=r"norm node \d+, unit 1, has a sign of its own"):
        refuse_dependent(normed_twice(epsilon=False))
    refuse_dependent(normed_twice(epsilon=True))  # each norm has a generic ε of its own


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_patterns_that_make_a_root_rational_are_not_drawn(eps):
    circuit = circuit_of(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.RMSNorm(3, eps=eps), nn.Linear(3, 1)))
    bits = {name: np.packbits(np.array(on, dtype=bool)).tobytes() for name, on in
            (("one", [0, 1, 0]), ("two", [1, 0, 1]), ("none", [0, 0, 0]))}  # fmt: skip
    assert not obstacle(circuit, bits["two"])
    assert bool(obstacle(circuit, bits["one"])) is (eps == 0)  # r = 1/|h|, and h > 0
    assert obstacle(circuit, bits["none"])  # r is a constant


def relus(*signs):
    """V [relu(±h), …]: patterns that exclude each other, or are equal."""
    net = Builder()
    h = net.dense(net.input(2), net.map("W", 1, 2))
    parts = [net.relu(net.fixed(h, [[sign]])) for sign in signs]
    return net.circuit("relus", net.dense(net.join(*parts), net.map("V", 1, len(signs))))


@pytest.mark.parametrize(("signs", "shown"), [((1, 1), {(1, 1), (0, 0)}), ((1, -1), {(1, 0), (0, 1)})])
def test_only_patterns_that_occur_are_drawn(signs, shown):
    on = patterns(relus(*signs), 200, np.random.default_rng(0))
    assert set(map(tuple, np.concatenate(list(on.values()), axis=1).astype(int).tolist())) == shown


def test_a_relu_read_twice_is_not_certified_without_its_difference():
    """V1 − V2 stands still as both read the same unit; patterns drawn apart would exclude it: 1 law of 4, certified."""
    found = find_circuit_laws(relus(1, 1), rule="bp")
    assert (found.count, found.bound, found.certified) == (1, 2, False)


def test_a_certificate_of_dependent_scores_does_not_stand():
    a = Attention()
    two = a.circuit(*(a.scores(a.map(f"Q{h}"), a.map(f"K{h}")) for h in range(2)))
    content = json.loads(json.dumps(find_circuit_laws(two, rule="fa").certificate))
    assert all(check.ok for check in verify_circuit_certificate(content))
    first, second = (node for node in content["circuit"]["nodes"] if node["kind"] == "Softmax")
    second["parents"] = first["parents"]
    content["sha256"] = digest(content)
    assert [check.what for check in verify_circuit_certificate(content) if not check.ok] == ["free data"]
