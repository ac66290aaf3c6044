"""What a count would misread is refused or read right: modules, rules, generic B, and what a certificate says."""

from __future__ import annotations

import contextlib
import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import lawful
from lawful.errors import SettingError
from lawful.finder.certificate import digest
from lawful.finder.circuits.networks import NETWORKS
from lawful.finder.circuits.verify import verify_circuit_certificate
from lawful.finder.search import find_laws
from lawful.finder.verify import verify_certificate


def count(*args, **kwargs):
    found = find_laws(*args, **kwargs)
    assert found.certified
    return found.count


def linear(n, m):
    return nn.Linear(n, m, bias=False)


# ---------------------------------------------------------------- modules


def test_dropout_in_linear_nets_is_no_mask_that_was_free_anyway():
    """With Dropout seven of the ten laws of the linear net move."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.Linear(3, 1))
    with pytest.raises(SettingError, match="Dropout at 1 masks what is linear"):
        find_laws(net, rule="fa")
    assert count(nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.0), nn.Linear(3, 1)), rule="fa") == 10
    ends = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 3), nn.Linear(3, 1), nn.Dropout(0.5))
    assert count(ends, rule="fa") == 10  # of inputs and errors any are meant
    with pytest.raises(SettingError, match="Dropout at 0"):
        find_laws(ends, rule="fa", inputs=[[1.0, 2.0]])
    with pytest.raises(SettingError, match="sends nothing on"):
        find_laws(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Dropout(1.0), nn.Linear(3, 1)), rule="fa")
    masked = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Dropout(0.5), nn.Linear(3, 1))
    assert count(masked, rule="fa") == 3
    for options in ({"rule": "mdfa"}, {"rule": "usf"}, {"rule": "fa", "inputs": [[1.0, 2.0]]}):
        with pytest.raises(SettingError, match="Dropout at 2"):
            find_laws(masked, **options)
    last = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.Dropout(0.5))
    assert count(last, rule="fa") == 3
    with pytest.raises(SettingError, match="Dropout at 3"):
        find_laws(last, rule="fa", output="softmax")


def test_slopes_of_leaky_relu_where_they_matter():
    def net(slope, act=nn.LeakyReLU):
        torch.manual_seed(2)
        act = act(slope)
        return nn.Sequential(linear(3, 2), act, linear(2, 2), act, linear(2, 3))

    assert count(net(0.3), rule="fa") == count(net(0.01), rule="fa") == 4
    assert count(net(0.0), rule="usf") == count(net(False, nn.ReLU), rule="usf")
    for options in ({"rule": "usf"}, {"rule": "mdfa"}, {"rule": "fa", "inputs": [[1.0, 2.0, 3.0]]}):
        with pytest.raises(SettingError, match=r"LeakyReLU at 1 has slope 0\.3"):
            find_laws(net(0.3), **options)
    for slope, what in ((float("nan"), "finite"), (1.0, "is linear")):
        with pytest.raises(SettingError, match=what):
            find_laws(net(slope), rule="fa")


class Sly(nn.Flatten):
    def forward(self, x):
        return x.relu()


def hooked():
    net = nn.Sequential(linear(2, 3), nn.ReLU(), linear(3, 1))
    net[0].weight.register_hook(lambda g: g * 0)
    return net


def tied():
    net = nn.Sequential(linear(2, 2), nn.ReLU(), linear(2, 2))
    net[2].weight = nn.Parameter(net[0].weight.detach().t())
    return net


@pytest.mark.parametrize(
    ("net", "what"),
    [
        (nn.Sequential(nn.Linear(2, 3), Sly(), nn.Linear(3, 1)), "cannot read Sly at 1"),
        (nn.Sequential(nn.Linear(2, 3), nn.Flatten(0), nn.Linear(3, 1)), "default dimensions"),
        (nn.Sequential(nn.Linear(2, 3, dtype=torch.cfloat), nn.Linear(3, 1, dtype=torch.cfloat)), "complex weight"),
        (hooked(), "has a hook on its weight"),
        (tied(), r"2\.weight and 0\.weight share memory"),
    ],
)
def test_modules_that_are_not_what_they_seem(net, what):
    with pytest.raises(SettingError, match=what):
        find_laws(net, rule="fa")


@pytest.mark.parametrize(
    ("net", "shape", "what"),
    [
        (nn.Sequential(nn.Linear(2, 2)), (2, 1), "expected 2 features"),
        (nn.Sequential(nn.AvgPool2d(2, 1), nn.Linear(3, 2)), (2, 4), "expected an input of 3 axes"),
        (nn.Sequential(nn.AvgPool1d(2), nn.Flatten(), nn.Linear(4, 1)), (1, 4, 2), "expected an input of 2 axes"),
        (nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3, eps=-1.0)), None, "eps must be 0 or more"),
    ],
)
def test_shapes_and_numbers_that_torch_would_refuse(net, shape, what):
    with pytest.raises(SettingError, match=what):
        find_laws(net, rule="fa", shape=shape)


def test_weights_that_lie_side_by_side_in_one_memory_are_read():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(net.parameters()), net.parameters())
    assert count(net, rule="fa") == count(net.to("meta"), rule="fa") == 3


def test_inputs_are_flattened_behind_what_changes_no_shape():
    for first in (nn.Dropout(0.5), nn.Identity()):
        net = nn.Sequential(first, nn.Flatten(), nn.Linear(4, 3), nn.Identity(), nn.Linear(3, 1))
        assert find_laws(net, rule="fa", shape=(2, 2)).architecture.widths == (4, 3, 1)


def test_tokens_that_are_flattened_later():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1))
    assert find_laws(net, rule="fa", shape=(2, 2)).network == "Sequential of 4 layers"


# ---------------------------------------------------------------- one softmax for each token


def test_every_token_has_a_softmax_of_its_own():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert count(net, rule="bp", output="softmax") == count(net, rule="bp", output="softmax", shape=(2, 2)) == 5
    attention = NETWORKS["attention-bias"]()
    free, softmax = (find_laws(attention, rule="bp", output=output) for output in ("free", "softmax"))
    more = {law.formula for law in softmax.laws} - {law.formula for law in free.laws}
    assert softmax.certified and more == {"O[1,1] + O[2,1]", "O[1,2] + O[2,2]", "bO[1] + bO[2]"}


def test_a_softmax_of_one_class_is_refused_for_every_token_too():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with pytest.raises(SettingError, match="softmax of one output"):
        find_laws(net, rule="bp", output="softmax", shape=(2, 2))


def test_column_sums_stand_still_under_cross_entropy_of_every_token():
    """The circuit's laws against SGD in torch, where convolutions have their classes first."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU(), nn.Conv1d(2, 3, 1)).double()
    found = find_laws(net, rule="bp", output="softmax", shape=(1, 4))
    sums = [law for law in found.laws if law.kind not in ("neuron", "channel")]
    assert found.certified and len(sums) == 3  # two column sums and that of the bias
    parameters = {n: p.detach().numpy().copy() for n, p in net.named_parameters()}
    before = [law.value(parameters) for law in sums]
    optimizer, x, y = torch.optim.SGD(net.parameters(), lr=0.1), torch.randn(6, 1, 4).double(), torch.randint(3, (6, 3))
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    after = [law.value({n: p.detach() for n, p in net.named_parameters()}) for law in sums]
    np.testing.assert_allclose(after, before, atol=1e-14)
    moved = max(float((p.detach() - torch.from_numpy(parameters[n])).abs().max()) for n, p in net.named_parameters())
    assert moved > 0.01


# ---------------------------------------------------------------- rules and their B


@pytest.mark.parametrize(
    ("widths", "rule", "unlucky"),
    [((2, 1, 1, 2), "dfa", 7537), ((2, 1, 1, 2), "mdfa", 1393), ((2, 2, 2), "low-rank-fa:rank=2", 3813)],
)
def test_generic_feedback_is_generic(widths, rule, unlucky):
    """These seeds draw feedback of another rank, or parallel rows, at first."""
    counts = {count(widths, rule=rule, activation="linear", seed=seed) for seed in (0, 1, unlucky)}
    assert len(counts) == 1


@pytest.mark.parametrize(
    ("rule", "B", "what"),
    [
        (lawful.UniformSignSymmetry(adaptive=True), [np.ones((1, 3))], "adaptive scale"),
        (lawful.DirectFeedbackAlignment(taps=["0"]), [np.ones((1, 3))], "leave taps out"),
        ("low-rank-fa:rank=1", [np.ones((1, 3))], "structure of its own"),
    ],
)
def test_given_feedback_does_not_hide_options(rule, B, what):
    with pytest.raises(SettingError, match=what):
        find_laws([2, 3, 1], rule=rule, B=B)


@pytest.mark.parametrize("activation", ["linear", "relu", "leaky_relu"])
def test_uniform_sign_symmetry_has_the_same_count_at_every_scale(activation):
    """It is counted with s = 1; with B = s ⊙ sign(W) given, at the same point."""
    rng = np.random.default_rng(0)
    for seed in range(6):
        widths = tuple(int(n) for n in rng.integers(1, 5, rng.integers(3, 6)))
        shapes = [(widths[i + 1], widths[i]) for i in range(1, len(widths) - 1)]
        B = [np.full(shape, rng.integers(1, 9) / 4) for shape in shapes]
        ours, scaled = (find_laws(widths, rule=rule, activation=activation, seed=seed, **given)
                        for rule, given in (("usf", {}), ("frsf", {"B": B})))  # fmt: skip
        assert (ours.count, ours.bound) == (scaled.count, scaled.bound)


@pytest.mark.parametrize("rule", [lawful.UniformSignSymmetry(), lawful.UniformSignSymmetry(scale=0.5),
                                  lawful.FixedMagnitudeSignSymmetry()])  # fmt: skip
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_laws_of_a_module_under_a_sign_rule_are_those_of_its_own_signs_and_scale(rule, seed):
    """Each law's rate along the gradients that torch computes with the attached rule."""
    torch.manual_seed(seed)
    net = nn.Sequential(linear(3, 2), nn.ReLU(), linear(2, 2), nn.ReLU(), linear(2, 3)).double()
    found = find_laws(net, rule=rule)
    assert found.certified and found.count > 4
    attachment = lawful.attach(net, rule)
    B = [attachment.feedback_of(f"{i}.weight") for i in (2, 4)] if rule.name == "frsf" else None
    for x in torch.randn(40, 3).double():
        net.zero_grad()
        net(x).backward(torch.randn(3).double())
        W, V = ([net[i].weight.detach().clone() for i in (0, 2, 4)], [net[i].weight.grad for i in (0, 2, 4)])
        for law in found.laws:
            up, down = (law.value([w + t * v for w, v in zip(W, V, strict=True)], B=B) for t in (1e-4, -1e-4))
            assert abs(up - down) < 1e-11, law.name


def test_the_orthant_is_read_by_name_not_by_order():
    """Pruning leaves a layer whose bias comes before its weight."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 2)).double()
    expected = find_laws(net, rule="usf")
    for layer in net:
        prune.remove(prune.identity(layer, "weight"), "weight")
    assert [name for name, _ in net[0].named_parameters()] == ["bias", "weight"]
    assert [law.polynomial for law in find_laws(net, rule="usf").laws] == [law.polynomial for law in expected.laws]


def test_laws_with_the_numbers_of_a_sign_rule():
    """Searched under s = 1, they are laws for no other s; directions that no error reaches are, and depend on M."""
    torch.manual_seed(5)
    act = nn.LeakyReLU()
    net = nn.Sequential(linear(3, 1), act, linear(1, 2), act, linear(2, 2)).double()
    W = [net[i].weight.detach() for i in (0, 2, 4)]
    law = next(law for law in find_laws(net, rule=lawful.UniformSignSymmetry()).laws if law.kind == "polynomial")
    assert isinstance(law.value(W, B=[torch.ones(2, 1), torch.ones(2, 2)]), float)
    with pytest.raises(SettingError, match="the numbers of the B it was found for"):
        law.value(W)  # s is 1/√fan-in
    for rule, raises in (("usf", False), ("frsf", True)):
        law = next(law for law in find_laws([2, 3, 1], rule=rule, activation="linear").laws if law.kind == "range")
        with pytest.raises(SettingError) if raises else contextlib.nullcontext():
            law.value([np.ones((3, 2)), np.ones((1, 3))], B=[np.full((1, 3), 0.123)])
    circuit = find_laws(NETWORKS["attention-bias"](), rule="usf")
    weights = {m.weight: np.ones(m.weight_at.shape) for m in circuit.system.circuit.maps}
    law = next(law for law in circuit.laws if law.kind == "range")
    own = {m.weight: circuit.system.exact[m.weight_at].astype(float) for m in circuit.system.circuit.maps}
    assert law.value(weights) == law.value(weights, {name: 0.3 * b for name, b in own.items()})


@pytest.mark.parametrize(
    ("widths", "options", "what"),
    [
        (
            [2, 3, 2, 1],
            {"rule": "frsf", "B": [-np.ones((2, 3)), np.ones((1, 2))]},
            r"magnitudes M, as B = M ⊙ sign\(W\)",
        ),
        ([2, 3, 1], {"rule": "usf", "B": [np.ones((1, 3))]}, "one number a layer"),
        ([2, 3, 1], {"rule": "mdfa", "B": [[[0.0, 1, 1]]]}, "numbers > 0 only"),
        ([1, 1, 1], {"rule": "bp", "activation": "tanh", "inputs": [[1.0]]}, "inputs are not counted with tanh"),
        ([2, 2, 1], {"rule": "drtp", "output": "softmax"}, "softmax of one output"),
        ([2, 2, 1], {"rule": "fa", "degree": 10**9, "search": True}, "degree must be at most 20"),
        ([2, 2, 1], {"rule": lawful.FeedbackAlignment}, r"write FeedbackAlignment\(\)"),
        ([2, 2, 1], {"rule": "dfa:output=7"}, "leave output out"),
        ([2, 2, 1], {"rule": lawful.KolenPollack(), "geometry": "decay"}, "without the optimiser's decay"),
        ([2, 2, 1], {"rule": lawful.KolenPollack(decay=0.1), "geometry": "decay", "decay": [1, 3]}, "all layers alike"),
        ([2, 2, 1], {"rule": "fa", "B": [[[np.nan, 1.0]]]}, "must be finite real numbers; got nan"),
        ([2, 2, 1], {"rule": "fa", "B": [torch.ones(1, 2).to_sparse()]}, "dense tensor"),
    ],
)
def test_what_no_count_can_answer_is_refused(widths, options, what):
    with pytest.raises(SettingError, match=what):
        find_laws(widths, **options)


def test_numbers_of_any_library_are_read():
    half = [torch.tensor([[0.5, 1.5]], dtype=torch.bfloat16)]
    found = find_laws([2, 2, 1], rule="fa", B=half, seed=np.int64(3))
    assert found.laws[0].value([torch.ones(2, 2).bfloat16(), torch.ones(1, 2)]) == 1 - 0.5
    assert count([3, 2], rule="sign-fa") == 0  # one layer learns as under backpropagation
    with pytest.raises(SettingError, match="real numbers"):
        found.laws[0].value([np.ones((2, 2)) * 1j, np.ones((1, 2))])
    with pytest.raises(SettingError, match="expected numbers for W_1"):
        found.laws[0].value([[["a", "b"], ["c", "d"]], np.ones((1, 2))])


def test_every_given_input_is_used_and_in_every_pair():
    many = [[1.0, 0.0]] * 40 + [[0.0, 1.0]]
    assert count([2, 2, 1], rule="fa", activation="linear", inputs=many) == 4
    many = [[float(k), 0.0] for k in range(1, 300)] + [[0.0, 1.0]]
    assert count([2, 2, 1], rule="fa", activation="linear", inputs=many) == 4
    assert count([3, 3, 1], rule="bp", activation="linear", inputs=[[1, 0, 0], [0, 1, 0]]) == 9


def test_a_law_with_numbers_of_B_is_no_law_of_another_B():
    found = find_laws([2, 3, 1], rule="fa", activation="linear")
    law = next(law for law in found.laws if law.numeric)
    W, B = [np.ones((3, 2)), np.ones((1, 3))], found.system.exact[1:]
    assert law.value(W) == law.value(W, B=[b.astype(float) for b in B])
    with pytest.raises(SettingError, match="the numbers of the B it was found for"):
        law.value(W, B=[np.ones((1, 3))])


@pytest.mark.parametrize(("widths", "rule"), [((3, 1, 3, 1, 2), "bp"), ((2, 2, 1, 2, 3), "fa")])
def test_honest_certificates_of_narrow_nets_stand(widths, rule):
    """All units on at once is rare: the verifier goes on until it has seen the claimed rank."""
    for seed in range(12):
        assert stands(find_laws(widths, rule=rule, seed=seed).certificate)


def test_values_of_circuits_belong_to_their_parameters_and_their_feedback():
    net = nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3))
    found = find_laws(net, rule="fa", shape=(1, 4))
    state = {n: p.detach() for n, p in net.named_parameters()}
    B = {"3.weight": torch.ones(3, 6)}
    assert isinstance(found.laws[0].value(dict(net.named_parameters()), B), float)
    with pytest.raises(SettingError, match=r"3\.weight has shape \(6, 3\); expected \(3, 6\)"):
        found.laws[0].value({**state, "3.weight": state["3.weight"].T}, B)
    frozen = find_laws(NETWORKS["residual"](), rule="fa")
    law = next(law for law in frozen.laws if law.numeric)
    sizes = {m.weight: np.ones(m.weight_at.shape) for m in frozen.system.circuit.maps}
    assert isinstance(law.value(sizes), float)
    with pytest.raises(SettingError, match="contains the numbers of the B it was found for"):
        law.value(sizes, {name: 0.5 * one for name, one in sizes.items()})


# ---------------------------------------------------------------- certificates, forged with a new digest


def forged(content, change):
    content = copy.deepcopy(content)
    change(content)
    return {**content, "sha256": digest(content)}


def stands(content, verify=verify_certificate):
    try:
        return all(check.ok for check in verify(content))
    except SettingError:
        return False


def twice(content):
    terms = content["laws"][0]["polynomial"]
    terms.insert(0, ["7", terms[0][1]])


def constant(content):
    content["laws"][0]["polynomial"].append(["1", []])


@pytest.mark.parametrize(
    "change",
    [
        twice,
        constant,
        lambda c: c.update(count=float(c["count"])),
        lambda c: c.update(certified=1),
        lambda c: c.update(dimension=float(c["dimension"])),
        lambda c: c["laws"][0].update(given_feedback=0),
    ],
)
@pytest.mark.parametrize(
    ("source", "options", "verify"),
    [
        ([2, 3, 1], {"activation": "linear"}, verify_certificate),
        (NETWORKS["attention-bias"](), {}, verify_circuit_certificate),
    ],
)
def test_forged_terms_and_types_do_not_stand(source, options, verify, change):
    content = find_laws(source, rule="fa", **options).certificate
    assert stands(content, verify)
    assert not stands(forged(content, change), verify)


def test_a_rule_has_the_feedback_that_is_its_own():
    frsf = find_laws([3, 2, 2, 3], rule="frsf", activation="linear").certificate
    assert stands(frsf)
    assert not stands(forged(frsf, lambda c: c["system"].update(rule="usf")))

    def flip(content):
        for point in content["points"]:
            point["state"] = [[-x for x in block] for block in point["state"]]

    assert not stands(forged(frsf, flip))
    circuit = find_laws(NETWORKS["attention-bias"](), rule="frsf").certificate
    assert stands(circuit, verify_circuit_certificate)
    assert not stands(forged(circuit, lambda c: c.update(rule="usf")), verify_circuit_certificate)


def test_a_point_on_a_wall_certifies_nothing():
    """At θ = 0 every unit of a ReLU net is at zero, no field moves, and every coordinate would be a law."""
    content = find_laws([2, 2, 1], rule="fa", inputs=[[1.0, 2.0], [3.0, -1.0]]).certificate
    assert stands(content)

    def to_zero(c):
        point = c["points"][0]
        point.update(state=[[0] * len(block) for block in point["state"]], levels=[0], samples=[1], rank=0)
        names, numbers = c["variables"], range(c["dimension"])
        law = {"kind": "data", "formula": "", "given_feedback": True}
        c["laws"] = [{**law, "name": names[i], "polynomial": [["1", [i]]]} for i in numbers]
        c.update(points=[point], count=c["dimension"], bound=c["dimension"], certified=True)

    assert not stands(forged(content, to_zero))


@pytest.mark.parametrize("rule", ["fa", "usf", "mdfa"])
def test_a_search_that_was_interrupted_at_once_leaves_a_certificate(rule):
    def interrupt(fraction, text):
        if "proving" in text:
            raise KeyboardInterrupt

    found = find_laws([3, 4, 3, 2], rule=rule, progress=interrupt)
    assert found.interrupted and stands(found.certificate)


def test_a_bound_that_is_weaker_than_the_rank_is_true_and_stands():
    """As after Ctrl-C: the rank was not finished."""
    content = find_laws([4, 8, 5, 3], rule="fa", num_points=1).certificate
    best = content["points"][0]

    def cut(c):
        rank = best["rank"] - 7
        c["points"][0].update(rank=rank, levels=[*best["levels"][:-1], rank])
        c["bound"] += 7
        c["certified"] = False

    assert stands(content) and stands(forged(content, cut))
