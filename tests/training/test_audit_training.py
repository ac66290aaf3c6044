"""An audited training: books against the same training done by hand; what broke a law, and the predicted forms."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lawful.conservation.base import LawSet
from lawful.errors import NoLawError
from lawful.experiments.audit import decay_of, predicted
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
    np.testing.assert_allclose(site.q - site.q[0], sum(site.signed.values()), rtol=1e-8, atol=1e-12)
    assert found.residual < 1e-10 and found.violation < 1e-10
    assert site.cause == "finite step" and site.broken is None
    assert len(found.agreements) == 3 and [g.law for g in found.guarantees] == ["1", "3"]


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


def test_decay_is_predicted_and_only_where_it_has_a_form():
    settings = replace(SMALL, rule="bp", optimizer="sgd:weight_decay=0.2", epochs=8)
    found = audit(settings)
    assert decay_of(settings) == 0.2
    for site in found.sites:
        form = predicted(site, settings.lr * found.steps.astype(float), 0.2)
        missed = np.abs(form - site.q).max()
        assert missed < 0.01 * np.abs(site.q[0]) < np.abs(site.q - site.q[0]).max()
    for change in ({"rule": "fa"}, {"optimizer": "adam:weight_decay=0.2"}, {"optimizer": "sgd:momentum=0.9"}):
        assert decay_of(replace(settings, **change)) is None


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
