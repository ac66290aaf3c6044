"""An audited training: books against the same training done by hand; what broke a law, and the predicted forms."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lawful.conservation.base import LawSet
from lawful.errors import NoLawError
from lawful.training.audit import audit
from lawful.training.loop import Training
from lawful.training.settings import Settings

SMALL = Settings(examples=96, batch=32, epochs=2, optimizer="sgd", lr=0.05)


def test_the_laws_recorded_are_those_of_the_training_itself():
    found = audit(SMALL)
    training = Training(SMALL)
    training.model.double()
    x = training.data.x.double()
    B = training.attachment.feedback["3.weight"].double()

    def q():
        w, b, v = (training.model.get_parameter(n).detach() for n in ("1.weight", "1.bias", "3.weight"))
        return float(0.5 * (w**2).sum() + 0.5 * (b**2).sum() - (v * B).sum())

    values = [q()]
    for epoch in (1, 2):
        order = np.random.default_rng([SMALL.seed, epoch]).permutation(len(x))
        for index in torch.from_numpy(order).split(32):
            training.optimizer.zero_grad()
            F.cross_entropy(training.model(x[index]), training.data.y[index]).backward()
            training.optimizer.step()
            values.append(q())
    site = found.sites[0]
    assert (site.name, site.kind) == ("1", "neuron") and list(found.steps) == list(range(7))
    np.testing.assert_allclose(site.q, values, rtol=1e-10)
    w, v = (training.model.get_parameter(n).detach() for n in ("1.weight", "3.weight"))
    last = found.alignments[-1]
    angle = float(torch.rad2deg(torch.acos((v * B).sum() / v.norm() / B.norm())))
    assert last.step == 6 and last.angles["3.weight"] == pytest.approx(angle, rel=1e-9)
    assert last.guarantees["1"] == pytest.approx((float((v * B).sum()), -values[-1]), rel=1e-9)
    np.testing.assert_allclose(site.q - site.q[0], sum(site.signed.values()), rtol=1e-8, atol=1e-12)
    assert found.residual < 1e-10 and found.violation < 1e-10
    assert site.cause == "finite step" and site.broken is None
    assert len(found.alignments) == 3 and [g.law for g in found.guarantees] == ["1", "3"]


@pytest.mark.parametrize(
    ("optimizer", "cause"),
    [("sgd:momentum=0.9", "momentum"), ("sgd:weight_decay=1.0", "weight decay"), ("adam", "preconditioning")],
)
def test_the_cause_is_named(optimizer, cause):
    found = audit(replace(SMALL, rule="bp", optimizer=optimizer, lr=0.01))
    neurons = [site for site in found.sites if site.kind == "neuron"]
    assert neurons and all(site.cause == cause for site in neurons)
    assert found.residual < 1e-10


def test_a_law_is_broken_at_the_first_step_that_moves_it_by_a_hundredth():
    found = audit(replace(SMALL, rule="bp", optimizer="sgd:weight_decay=0.1", lr=0.05))
    for site in found.sites:
        # (1 − lr·λ)² a step for quadratic laws, 0.990025 at first; (1 − lr·λ) for linear ones
        expected = 2 if site.kind != "shift" else 3
        assert site.broken == expected
        assert site.moved[expected] > 0.01 >= site.moved[expected - 1]


FORMS = [
    ("bp", "sgd:weight_decay=0.2", {"neuron", "shift"}),
    ("bp", "sgd:weight_decay=0.2,momentum=0.9", {"neuron", "shift"}),
    ("fa", "sgd:momentum=0.9", {"neuron", "shift"}),
    ("fa", "sgd:weight_decay=0.2", {"shift"}),  # ½|W|² shrinks twice as fast as ⟨W, B⟩
    ("kp", "sgd:momentum=0.5", {"neuron", "shift"}),
    ("kp:decay=0.01", "sgd", set()),  # it decays between the steps
    ("usf", "sgd:momentum=0.5", {"shift"}),  # |W| is no quadratic
    ("bp", "sgd:momentum=0.9,nesterov=True", set()),
    ("fa", "adam", set()),
]


@pytest.mark.parametrize(("rule", "optimizer", "kinds"), FORMS)
def test_forms_are_predicted_exactly_and_only_where_there_are_any(rule, optimizer, kinds):
    found = audit(replace(SMALL, rule=rule, optimizer=optimizer, lr=0.02, epochs=4))
    assert {site.kind for site in found.sites if site.predicted is not None} == kinds
    for site in found.sites:
        if site.predicted is not None:
            assert site.missed < 1e-12
            np.testing.assert_allclose(site.predicted, site.q, rtol=1e-9, atol=1e-11)


def test_a_prediction_tells_a_wrong_gradient(monkeypatch):
    """The forms assume ⟨∇q, g⟩ = 0: a gradient of which one weight is wrong by a percent must not follow them."""
    plain = Training._loss

    def wrong(self, model, x, y):
        if model is self.model and not hasattr(self, "hooked"):
            self.hooked = model.get_parameter("1.weight").register_hook(lambda g: 1.01 * g)
        return plain(self, model, x, y)

    monkeypatch.setattr(Training, "_loss", wrong)
    found = audit(replace(SMALL, optimizer="sgd:momentum=0.9"))
    assert max(site.missed for site in found.sites) > 1e-7 and found.violation > 1e-7


class Interrupted(Exception):
    pass


def test_an_interrupted_audit_goes_on_to_the_same_numbers(tmp_path):
    settings = replace(SMALL, optimizer="sgd:momentum=0.9", epochs=3)
    whole = audit(settings)

    def interrupt(fraction, text):
        if text.startswith("epoch 3"):
            raise Interrupted

    with pytest.raises(Interrupted):
        audit(settings, interrupt, tmp_path)
    assert {path.name for path in tmp_path.glob("books-*")} == {"books-00001", "books-00002"}
    seen = []
    resumed = audit(settings, lambda fraction, text: seen.append(text[:7]), tmp_path)
    assert set(seen) == {"epoch 3"}
    assert resumed.alignments == whole.alignments and list(resumed.steps) == list(whole.steps)
    for ours, theirs in zip(resumed.sites, whole.sites, strict=True):
        np.testing.assert_array_equal(ours.q, theirs.q)
        np.testing.assert_array_equal(ours.predicted, theirs.predicted)
        for cause, part in theirs.budget.items():
            np.testing.assert_array_equal(ours.budget[cause], part)
    assert (resumed.residual, resumed.violation) == (whole.residual, whole.violation)


def test_a_direct_rule_is_watched_where_it_has_a_law():
    found = audit(replace(SMALL, rule="dfa", epochs=1))
    assert [(site.name, site.kind) for site in found.sites if site.kind == "neuron"] == [("3", "neuron")]
    assert found.violation < 1e-10 and "at tap '2'" in found.reasons["1.weight"]


def test_a_rule_without_laws_is_named(monkeypatch):
    monkeypatch.setattr("lawful.training.audit.laws_of", lambda *args, **options: LawSet([], {"w": "of that"}, []))
    with pytest.raises(NoLawError, match="'fa' has no law to watch: of that"):
        audit(SMALL)


def test_convolutions():
    found = audit(replace(SMALL, model="cnn", examples=32, epochs=1))
    assert {site.kind for site in found.sites} >= {"neuron", "shift"} and found.violation < 1e-10
