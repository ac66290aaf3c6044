"""Laws of weight decay and momentum are constant along the integrated flow; without the time they are not."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from lawful.errors import SettingError
from lawful.finder.search import find_laws

RATE, HORIZON = 0.4, 1.0
"""λ or γ, and the flow time of the integration: the laws' own time is RATE · flow time."""


def shapes_of(widths, bias, moving):
    weights = list(zip(widths[1:], widths, strict=False))
    return weights, [(m,) for m in widths[1:]] if bias else [], weights[1:] if moving else []


def unpack(theta, shapes):
    parts, start = [], 0
    for group in shapes:
        blocks = []
        for shape in group:
            size = int(np.prod(shape))
            blocks.append(theta[start : start + size].reshape(shape))
            start += size
        parts.append(blocks)
    return parts


def force(theta, shapes, B, rule, activation, t, softmax):
    """-(δᵀa, Σδ) for an input and an error that swing in time, by the textbook formula."""
    W, b, moving = unpack(theta, shapes)
    x, e = np.cos(np.arange(1, W[0].shape[1] + 1) * (1 + t)), np.sin(np.arange(1, len(W[-1]) + 1) + 2 * t)
    e = e - e.mean() if softmax else e
    a, slopes = [x], []
    for i, w in enumerate(W[:-1]):
        h = w @ a[-1] + (b[i] if b else 0)
        a.append({"linear": h, "square": h * h}[activation])
        slopes.append({"linear": np.ones_like(h), "square": 2 * h}[activation])
    deltas = [e]
    for i in reversed(range(1, len(W))):
        back = {"bp": W, "kp": [None, *moving], "fa": [None, *B], "usf": [np.sign(w) for w in W]}.get(rule)
        sent = e @ B[i - 1] if rule == "dfa" else deltas[0] @ back[i]
        deltas.insert(0, sent * slopes[i - 1])
    dW = [-np.outer(d, v) for d, v in zip(deltas, a, strict=True)]
    return np.concatenate([np.ravel(v) for v in [*dW, *[-d for d in deltas if b], *(dW[1:] if moving else [])]])


def trajectory(widths, rule, activation, bias, geometry, rates, B, softmax=False):
    shapes = shapes_of(widths, bias, rule == "kp")
    rng = np.random.default_rng(3)
    start = np.concatenate([rng.uniform(0.2, 0.6, int(np.prod(s))) for group in shapes for s in group])
    layer = [i for i in range(len(widths) - 1)]
    at = [*layer, *(layer if bias else []), *(layer[1:] if rule == "kp" else [])]
    sizes = [int(np.prod(s)) for group in shapes for s in group]
    pull = RATE * np.concatenate([np.full(n, rates[i] if rates else 1.0) for n, i in zip(sizes, at, strict=True)])
    size = len(start)

    def decay(t, theta):
        return force(theta, shapes, B, rule, activation, t, softmax) - pull * theta

    def momentum(t, state):
        theta, v = state[:size], state[size:]
        return np.concatenate([v, force(theta, shapes, B, rule, activation, t, softmax) - RATE * v])

    field = {"decay": decay, "momentum": momentum}[geometry]
    state = start if geometry == "decay" else np.concatenate([start, rng.uniform(-0.3, 0.3, size)])
    times = np.linspace(0, HORIZON, 4)
    solved = solve_ivp(field, (0, HORIZON), state, method="DOP853", rtol=1e-12, atol=1e-14, t_eval=times)
    for t, row in zip(times, solved.y.T, strict=True):
        W, b, C = unpack(row[:size], shapes)
        velocity = unpack(row[size:] / RATE, shapes) if geometry == "momentum" else None
        yield RATE * t, W, b if bias else None, C if rule == "kp" else B, velocity


CASES = [
    ((2, 3, 1), "fa", "linear", False, "decay", [1, 2]),
    ((2, 3, 1), "fa", "linear", True, "decay", None),
    ((2, 3, 2, 2), "fa", "square", True, "decay", [1, 2, 4]),
    ((2, 3, 2, 2), "fa", "linear", True, "decay", [1, 2, 4]),
    ((2, 3, 2, 2), "dfa", "linear", False, "decay", [1, 2, 4]),
    ((2, 3, 2, 1), "usf", "linear", True, "decay", [1, 2, 4]),
    ((2, 3, 1), "bp", "linear", False, "decay", None),
    ((2, 3, 1), "bp", "linear", False, "decay", [1, 2]),
    ((1, 3, 1), "bp", "linear", True, "decay", [3, 1]),
    ((2, 2, 2), "kp", "square", True, "decay", None),
    ((2, 2, 2), "kp", "linear", False, "momentum", None),
    ((2, 3, 1), "fa", "linear", True, "momentum", None),
    ((2, 4, 2), "dfa", "linear", False, "momentum", None),
]


@pytest.mark.parametrize(("widths", "rule", "activation", "bias", "geometry", "rates"), CASES)
def test_every_law_is_constant_along_the_flow(widths, rule, activation, bias, geometry, rates):
    rng = np.random.default_rng(1)
    layerwise = [(m, n) for n, m in zip(widths[1:], widths[2:], strict=False)]
    shapes = [(widths[-1], n) for n in widths[1:-1]] if rule == "dfa" else layerwise
    B = [rng.integers(1, 5, shape).astype(float) * rng.choice([-1, 1], shape) for shape in shapes]
    B = [np.ones(shape) for shape in shapes] if rule == "usf" else B
    given = {"B": B} if rule in ("fa", "dfa") else {}
    found = find_laws(widths, rule=rule, activation=activation, bias=bias, geometry=geometry, decay=rates, **given)
    assert found.certified and found.count
    back = None if rule in ("bp",) else 0
    path = list(trajectory(widths, rule, activation, bias, geometry, rates, B))
    moved = 0
    for law in found.laws:
        # A sign rule's numeric laws belong to the orthant of the search, not to this one.
        if rule == "usf" and law.numeric:
            continue
        values, frozen = [], []
        for t, W, b, C, velocity in path:
            feedback = C if back is not None else None
            values.append(law.value(W, b, feedback, t=t, velocity=velocity))
            frozen.append(law.value(W, b, feedback, t=0.0, velocity=velocity))
        scale = max(map(abs, values))
        np.testing.assert_allclose(values, values[0], rtol=0, atol=1e-9 * scale, err_msg=law.name)
        moved += max(frozen) - min(frozen) > 1e-2 * scale
    timed = [law for law in found.laws if "e^t" in law.polynomial and not (rule == "usf" and law.numeric)]
    assert moved == len(timed) > 0


def test_momentum_laws_need_the_velocity():
    widths, B = (2, 3, 1), [np.array([[1.0, -2.0, 3.0]])]
    found = find_laws(widths, rule="fa", activation="linear", geometry="momentum", B=B)
    path = list(trajectory(widths, "fa", "linear", False, "momentum", None, B))
    still = [np.zeros_like(w) for w in path[0][1]]
    shifted = next(law for law in found.laws if "at θ + v" in law.formula)
    without = [shifted.value(W, None, B, t=t, velocity=(still,)) for t, W, _, _, _ in path]
    assert max(without) - min(without) > 1e-2


def test_uniform_decay_keeps_what_is_linear_and_rates_doubling_by_layer_keep_all():
    for widths in [(2, 3, 1), (2, 3, 3, 2), (1, 2, 2, 2, 2)]:
        doubling = [2**i for i in range(len(widths) - 1)]
        relu = {"rule": "fa", "activation": "relu", "geometry": "decay"}
        plain = find_laws(widths, rule="fa", activation="linear")
        linear = find_laws(widths, rule="fa", activation="linear", geometry="decay", decay=doubling)
        assert (linear.count, linear.certified) == (plain.count, True)
        doubled, uniform = find_laws(widths, **relu, decay=doubling), find_laws(widths, **relu)
        assert (doubled.count, doubled.certified) == (sum(widths[1:-1]), True)
        assert (uniform.count, uniform.certified) == (0, True)
    assert find_laws((2, 3, 1), rule="fa", activation="linear", geometry="decay").count == 2 * 2


def test_names_say_how_fast_a_law_grows():
    found = find_laws((2, 3, 1), rule="fa", activation="relu", geometry="decay", decay=(1, 2))
    assert found.laws[0].formula == "e^(2t)·(½‖W1[1,:]‖² − ⟨B2[:,1], W2[:,1]⟩), t in units of 1/λ"


@pytest.mark.parametrize("decay", [[1], [1, 2, 4], [0, 0], [1, -1], [1, 0.5], [True, 1], [1, 1000], []])
def test_bad_rates_are_refused(decay):
    with pytest.raises(SettingError, match="2 whole numbers"):
        find_laws((2, 3, 1), rule="fa", geometry="decay", decay=decay)


def test_rates_without_decay_are_refused():
    with pytest.raises(SettingError, match="geometry='decay'"):
        find_laws((2, 3, 1), rule="fa", decay=[1, 2])


def test_value_says_what_is_missing_or_superfluous():
    W, b = [np.ones((3, 2)), np.ones((1, 3))], [np.ones(3), np.ones(1)]
    laws = {
        geometry: find_laws((2, 3, 1), rule="fa", activation="linear", geometry=geometry).laws[0]
        for geometry in ("plain", "decay", "momentum")
    }
    cases = [
        ("plain", {"t": 1.0}, "leave t out"),
        ("plain", {"velocity": (W,)}, "no velocity"),
        ("plain", {"b": b}, "more weights or biases"),
        ("decay", {}, "expected t in 1/λ"),
        ("decay", {"t": float("nan")}, "expected t in 1/λ"),
        ("decay", {"t": "soon"}, "expected t in 1/λ"),
        ("decay", {"t": 1.0, "velocity": (W,)}, "no velocity"),
        ("momentum", {"t": 1.0}, "velocity=\\(V, c, C\\)"),
        ("momentum", {"velocity": (W,)}, "expected t in 1/γ"),
        ("momentum", {"t": 1.0, "velocity": (W[:1],)}, "velocity: expected W_2"),
        ("momentum", {"t": 1.0, "velocity": (W, b)}, "velocity: .*more"),
    ]
    for geometry, options, part in cases:
        with pytest.raises(SettingError, match=part):
            laws[geometry].value(W, options.pop("b", None), **options)
    with pytest.raises(SettingError, match=r"expected W_1 of shape \(3, 2\); got \(2, 3\)"):
        laws["plain"].value([np.ones((2, 3)), W[1]])
    with pytest.raises(SettingError, match="expected W_2"):
        laws["plain"].value(W[:1])
    with pytest.raises(SettingError, match="expected B"):
        laws["plain"].value(W, None, [np.ones((2, 2))])
    with pytest.raises(SettingError, match="1 arrays B"):
        laws["plain"].value(W, None, [])
