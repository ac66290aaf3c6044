"""What weight decay, momentum and finite steps make of a charge: exact recursions and the paper's forms."""

from __future__ import annotations

import numpy as np

from lawful.experiments.papers.kunin2021.charges import Record
from lawful.flows.activations import Floats
from lawful.training.heavy_ball import HeavyBall


def recursion(record: Record, power: int, *, lr: float, decay: float, momentum: float = 0.0) -> Floats:
    """Predict q from q(0) and the finite-step terms alone, exact for heavy-ball SGD: no gradient enters.

    >>> flat = Record(np.arange(3.0), np.array([[8.0], [0.0], [0.0]]), np.zeros((2, 1)))
    >>> recursion(flat, 1, lr=1.0, decay=0.5).ravel().tolist()
    [8.0, 4.0, 2.0]
    """
    form = HeavyBall(record.q[0], power, lr=lr, decay=decay, momentum=momentum)
    return np.array([record.q[0], *(form.step(d) for d in record.d)])


def integral(record: Record, power: int, *, decay: float) -> Floats:
    """The paper's form for SGD with decay: e^{−pλt}(q(0) + Σ e^{pλt_s} d_s), d_s taken without its decay part."""
    rate = power * decay
    pure = record.d - _decay_part(record, decay) if power == 2 else record.d
    grown = np.cumsum(np.exp(rate * record.t[:-1, None]) * pure, axis=0)
    return np.exp(-rate * record.t)[:, None] * (record.q[0] + np.concatenate([0 * grown[:1], grown]))


def _decay_part(record: Record, decay: float) -> Floats:
    """Of the step −lr(g + λθ) the part of q's second-order term that is decay's: (lr·λ)² q, as ⟨∇q, g⟩ = 0."""
    return (np.diff(record.t)[:, None] * decay) ** 2 * record.q[:-1]


def oscillator(t: Floats, start: Floats, *, lr: float, decay: float, momentum: float) -> Floats:
    """The paper's ½lr(1+β) s̈ + (1−β) ṡ + λs = 0 from rest: a damped oscillator for a translation charge.

    >>> oscillator(np.array([0.0]), np.array([2.0]), lr=0.1, decay=0.1, momentum=0.9).ravel().tolist()
    [2.0]
    """
    roots = np.roots([0.5 * lr * (1 + momentum), 1 - momentum, decay]).astype(complex)
    a, b = roots
    shape = ((b * np.exp(a * t) - a * np.exp(b * t)) / (b - a)).real
    return shape[:, None] * start


def off(record: Record, predicted: Floats) -> float:
    """Largest deviation of a run from a prediction, relative to the record's size."""
    return float(np.abs(record.q - predicted).max()) / record.size
