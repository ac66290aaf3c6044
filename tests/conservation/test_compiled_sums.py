"""Sums in one compiled pass against sums that are written down, in float64, product by product."""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref

import pytest
import torch

from lawful.affine.slices import Slices, vector
from lawful.conservation import compiled, loop
from lawful.conservation.combination import Combination, Quotient
from lawful.conservation.compiled import SquaredNorms, in_one_pass
from lawful.errors import SettingError

pytestmark = pytest.mark.skipif(not compiled.is_available(), reason="needs numba: pip install 'lawful[fast]'")

LINES = {
    "linear": ((130, 70), [Slices("w", (130, 70), (0,)), Slices("w", (130, 70), (1,))]),
    "convolution": ((12, 8, 3, 3), [Slices("w", (12, 72), (0,)), Slices("w", (1, 12, 8, 9), (0, 2))]),
    "flatten": ((20, 24), [Slices("w", (20, 6, 4), (1,))]),
    "packed rows": ((96, 40), [Slices("w", (32, 40), (0,), window=(32, 64))]),
    "packed heads": ((96, 40), [Slices("w", (4, 8, 40), (0, 1), window=(64, 96))]),
    "long rows": ((3, 5000), [Slices("w", (3, 5000), (0,)), Slices("w", (3, 5000), (1,))]),
    "bias": ((300,), [vector("w", 300)]),
    "packed bias": ((300,), [vector("w", 100, (100, 200))]),
    "embedding": ((200, 16), [Slices("w", (200, 16), (0,))]),
    "one column": ((300, 1), [Slices("w", (300, 1), (0,))]),
}


def operands(shape, dtype):
    g = torch.Generator().manual_seed(0)
    p, m, v, grad, B = (torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for _ in range(5))
    v = v.square()
    direction = Combination(Quotient(m, v, 0.3))
    weight = Combination(p) - 0.25 * direction
    exact = {k: x.double() for k, x in {"p": p, "m": m, "v": v, "g": grad, "B": B}.items()}
    d = exact["m"] / (exact["v"].sqrt() + 0.3)
    w = exact["p"] - 0.25 * d
    wide = (3.0 * Combination(grad) - 0.5 * Combination(m)), 3.0 * exact["g"] - 0.5 * exact["m"]
    pairs = [
        ((weight, w), (Combination(grad), exact["g"])),
        ((direction, d), (direction, d)),
        ((weight, w), (direction, d)),
        ((Combination(B), exact["B"]), wide),
    ]
    return [(x[0], y[0]) for x, y in pairs], [(x[1], y[1]) for x, y in pairs]


def assert_sums(found, pairs, exact, lines, dtype):
    eps = torch.finfo(dtype).eps
    for own, slices in zip(found, lines, strict=True):
        for (x, y), (a, b), sums in zip(pairs, exact, torch.from_numpy(own), strict=True):
            expected = slices.sum(a * b) / (x.factor * y.factor)
            size = slices.sum((a * b).abs()) / abs(x.factor * y.factor)
            assert bool(((sums - expected).abs() <= 64 * eps * size + eps).all())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LINES)
def test_the_sums_are_those_of_the_products(name, dtype, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(compiled, "BAND", 1)
    shape, lines = LINES[name]
    pairs, exact = operands(shape, dtype)
    found = in_one_pass([(pairs[:3], lines), (pairs[3:], lines[-1:])])
    assert found is not None
    assert_sums(found[0], pairs[:3], exact[:3], lines, dtype)
    assert_sums(found[1], pairs[3:], exact[3:], lines[-1:], dtype)


@pytest.mark.parametrize("name", LINES)
def test_squared_norms_come_together_over_steps(name):
    shape, lines = LINES[name]
    _, ((_, g), (d, _), *_) = operands(shape, torch.float64)
    steps = [-0.1 * Combination(g), Combination(g) + 2.0 * Combination(d), -0.3 * Combination(d)]
    norms = SquaredNorms(lines)
    assert norms.take() is None
    assert all(norms.add(step) for step in steps)
    total = (0.1 * g).square() + (g + 2 * d).square() + (0.3 * d).square()
    for sums, slices in zip(norms.take(), lines, strict=True):
        torch.testing.assert_close(sums, slices.sum(total), rtol=1e-12, atol=0)
    assert norms.take() is None


def test_a_wrong_loop_would_be_seen(monkeypatch):
    right = loop.source
    monkeypatch.setattr(loop, "source", lambda plan: right(plan).replace("np.sqrt(m", "(m"))
    loop.kernel.cache_clear()
    try:
        shape, lines = LINES["linear"]
        pairs, exact = operands(shape, torch.float64)
        (found,) = in_one_pass([(pairs, lines)])
        with pytest.raises(AssertionError):
            assert_sums(found, pairs, exact, lines, torch.float64)
    finally:
        loop.kernel.cache_clear()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad):
    shape, lines = LINES["linear"]
    x = torch.ones(shape)
    x[7, 5] = bad
    rows, columns = in_one_pass([([(Combination(x), Combination(x))], lines)])[0]
    assert (~torch.from_numpy(rows[0]).isfinite()).nonzero().tolist() == [[7]]
    assert (~torch.from_numpy(columns[0]).isfinite()).nonzero().tolist() == [[5]]


SQUARE = LINES["linear"][1]
X = torch.ones(130, 70)
UNREADABLE = {
    "half precision": (X.bfloat16(), X.bfloat16(), SQUARE),
    "two precisions": (X, X.double(), SQUARE),
    "integers": (X.int(), X.int(), SQUARE),
    "another order in memory": (X.T.contiguous().T, X, SQUARE),
    "an expanded gradient": (X, torch.ones(()).expand(130, 70), SQUARE),
    "another shape": (X, torch.ones(70, 130), SQUARE),
    "a parameter of another size": (X[:100].clone(), X[:100].clone(), SQUARE),
    "a window beyond the end": (X, X, [Slices("w", (32, 70), (0,), window=(100, 132))]),
    "to be differentiated": (X.clone().requires_grad_(), X, SQUARE),
    "empty": (X[:0].clone(), X[:0].clone(), SQUARE),
    "sparse": (X, X.to_sparse(), SQUARE),
    "nowhere": (X.to("meta"), X.to("meta"), SQUARE),
    "all zeros, unwritten": (X, torch._efficientzerotensor((130, 70)), SQUARE),
    "negated on reading": (X, torch._neg_view(X), SQUARE),
    "short rows": (torch.ones(1300, 7), torch.ones(1300, 7), [Slices("w", (1300, 7), (0,))]),
    "lines of groups": (X, X, [Slices("w", (10, 13, 70), (0, 2))]),
    "two matrices": (X, X, [SQUARE[0], Slices("w", (13, 10, 70), (0,))]),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_left_to_torch(name):
    x, y, lines = UNREADABLE[name]
    assert in_one_pass([([(Combination(x), Combination(y))], lines)]) is None
    assert not SquaredNorms(lines).add(Combination(x) + 2.0 * Combination(y))


def test_numba_that_does_not_load_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba.core", None)
    compiled.is_available.cache_clear()
    try:
        with pytest.raises(SettingError, match="does not load .*uninstall it"):
            compiled.is_available()
    finally:
        compiled.is_available.cache_clear()


def test_numba_that_may_not_compile_is_left_alone(monkeypatch):
    monkeypatch.setattr("numba.core.config.DISABLE_JIT", 1)
    compiled.is_available.cache_clear()
    try:
        assert not compiled.is_available()
    finally:
        compiled.is_available.cache_clear()


def test_a_band_holds_its_tensors_when_the_call_is_interrupted(monkeypatch):
    """Threads go on after Ctrl-C has ended the call that they read for."""
    begun, go, alive = threading.Event(), threading.Event(), []
    x = torch.ones(130, 70)
    held = weakref.ref(x)

    def kernel(*_):
        begun.set()
        go.wait(60)
        alive.append(held() is not None)

    monkeypatch.setattr(compiled, "kernel", lambda *_: kernel)
    monkeypatch.setattr(compiled, "BAND", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    pool = compiled._threads(2, os.getpid())

    class Pool:
        def map(self, function, *arguments):
            jobs = [pool.submit(function, *one) for one in zip(*arguments, strict=False)]
            begun.wait(60)
            self.jobs = jobs
            raise KeyboardInterrupt

    interrupting = Pool()
    monkeypatch.setattr(compiled, "_threads", lambda *_: interrupting)
    with pytest.raises(KeyboardInterrupt):
        in_one_pass([([(Combination(x), Combination(x))], SQUARE)])
    del x
    gc.collect()
    go.set()
    for job in interrupting.jobs:
        job.result(60)
    assert alive == [True, True]
