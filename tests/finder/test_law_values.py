"""The laws that are found stay constant along an explicit NumPy flow, and others do not."""

import numpy as np
import pytest

from lawful.finder.search import find_laws


def rates(W, b, B, x, e, *, rule, activation):
    """-(δᵀa, Σδ) by the textbook formula, for one input."""
    a, slopes = [x], []
    for i, w in enumerate(W[:-1]):
        h = w @ a[-1] + (b[i] if b else 0)
        on = np.ones_like(h) if activation == "linear" else (h > 0).astype(float)
        a.append(on * h)
        slopes.append(on)
    deltas = [e]
    for i in reversed(range(1, len(W))):
        if rule in ("dfa", "mdfa"):
            sent = e @ B[i - 1]
        else:
            back = {"bp": W[i], "usf": np.sign(W[i]) / np.sqrt(W[i].shape[1])}.get(rule, B[i - 1])
            sent = deltas[0] @ back
        deltas.insert(0, sent * slopes[i - 1])
    return [-np.outer(d, v) for d, v in zip(deltas, a, strict=True)], [-d for d in deltas]


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "usf", "kp"])
@pytest.mark.parametrize("activation", ["linear", "relu"])
@pytest.mark.parametrize("bias", [False, True])
def test_value_is_constant_along_the_field(rule, activation, bias):
    widths, rng = (3, 4, 2, 2), np.random.default_rng(5)
    W = [rng.standard_normal((m, n)) for n, m in zip(widths, widths[1:], strict=False)]
    b = [rng.standard_normal(m) for m in widths[1:]] if bias else None
    shapes = [(2, n) for n in widths[1:-1]] if rule == "dfa" else [w.shape for w in W[1:]]
    B = [rng.integers(-5, 6, shape).astype(float) for shape in shapes]
    given = {"B": B} if rule in ("fa", "dfa") else {}
    found = find_laws(widths, rule=rule, activation=activation, bias=bias, seed=1, **given)
    assert found.certified
    x, e, step = rng.standard_normal(3), rng.standard_normal(2), 1e-5
    dW, db = rates(W, b, B, x, e, rule=rule, activation=activation)
    dB = dW[1:] if rule == "kp" else [np.zeros_like(v) for v in B]
    feedback = None if rule in ("bp", "usf") else B

    def at(law, t):
        moved = None if b is None else [v + t * d for v, d in zip(b, db, strict=True)]
        back = None if feedback is None else [v + t * d for v, d in zip(feedback, dB, strict=True)]
        return law.value([w + t * d for w, d in zip(W, dW, strict=True)], moved, back)

    # A sign rule's numeric laws belong to the orthant of the search, not to this W's.
    general = [law for law in found.laws if not (rule == "usf" and (law.numeric or law.kind == "polynomial"))]
    assert general
    for law in general:
        size = 1 + abs(law.value(W, b, feedback))
        assert abs(at(law, step) - at(law, -step)) / (2 * step) < 1e-4 * size * 10, law.name


def test_neuron_law_value_and_text():
    found = find_laws([2, 3, 1], rule="fa", activation="relu")
    W = [np.arange(6.0).reshape(3, 2), np.array([[1.0, 2.0, 3.0]])]
    B = [np.array([[0.5, -1.0, 2.0]])]
    law = found.laws[1]
    assert law.name == "neuron law of layer 1, neuron 2"
    assert law.formula == "½‖W1[2,:]‖² − ⟨B2[:,2], W2[:,2]⟩"
    assert law.polynomial == "½·W1[2,1]² + ½·W1[2,2]² − W2[1,2]·B2[1,2]"
    assert law.value(W, None, B) == pytest.approx(0.5 * (4 + 9) + 2.0)


def test_the_search_finds_the_laws_by_itself(monkeypatch):
    from lawful.finder import search

    monkeypatch.setattr(search, "BUILDERS", ())
    found = find_laws([2, 2, 1], rule="fa", activation="relu", search=True)
    assert found.certified and found.count == 2
    assert {law.kind for law in found.laws} == {"polynomial"}
    backprop = find_laws([2, 2, 1], rule="bp", activation="linear", search=True)
    assert backprop.certified and backprop.count == 3
