"""The direct field against an explicit formula, and its law in the last hidden layer only."""

import numpy as np

from lawful.flows.direct_field import DirectField
from lawful.flows.network import Network
from lawful.rules.direct_feedback_alignment import DirectFeedbackAlignment


def make(activation: str) -> DirectField:
    rng = np.random.default_rng(0)
    net = Network.random((3, 5, 4, 2), activation=activation, bias=True, bias_scale=0.3, seed=rng)
    rule = DirectFeedbackAlignment(seed=4)
    return DirectField(net, rule, rng.standard_normal((6, 3)), rng.standard_normal((6, 2)), kappa=0.5)


def test_direct_feedback_is_the_explicit_formula() -> None:
    field = make("tanh")
    net = field.network
    assert net.biases is not None
    D1, D2 = field.states[1]["D"], field.states[2]["D"]
    assert (D1.shape, D2.shape) == ((2, 5), (2, 4))
    dW = [np.zeros_like(w) for w in net.weights]
    for x, y in zip(field.X, field.Y, strict=True):
        a1 = np.tanh(net.weights[0] @ x + net.biases[0])
        a2 = np.tanh(net.weights[1] @ a1 + net.biases[1])
        e = 0.5 * (net.weights[2] @ a2 + net.biases[2] - y)
        dW[0] -= np.outer((1 - a1**2) * (D1.T @ e), x)
        dW[1] -= np.outer((1 - a2**2) * (D2.T @ e), a1)
        dW[2] -= np.outer(e, a2)
    got, _ = net.unpack(field(net.theta()))
    for mine, expected in zip(got, dW, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-12, atol=1e-13)


def test_neuron_law_holds_in_the_last_hidden_layer_only() -> None:
    field = make("relu")
    net = field.network
    assert net.biases is not None
    dW, db = net.unpack(field(net.theta()))
    assert db is not None
    for i, kept in ((0, False), (1, True)):
        own = np.sum(dW[i] * net.weights[i], axis=1) + db[i] * net.biases[i]
        if kept:
            np.testing.assert_allclose(own, np.sum(dW[2] * field.states[2]["D"], axis=0), rtol=1e-11, atol=1e-13)
        else:
            B = np.linalg.pinv(field.states[2]["D"]) @ field.states[1]["D"]  # the FA feedback of a *linear* net
            assert np.abs(own - np.sum(dW[1] * B, axis=0)).max() > 1e-3
