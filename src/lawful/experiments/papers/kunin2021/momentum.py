"""Section 5: momentum makes charges oscillators."""

from __future__ import annotations

import math

import numpy as np

from lawful.experiments.claims import Claim
from lawful.experiments.paper import Progress
from lawful.experiments.papers.kunin2021.charges import SYMMETRIES, sgd_runs
from lawful.experiments.papers.kunin2021.predictions import off, oscillator, recursion
from lawful.experiments.papers.kunin2021.settings import Settings
from lawful.experiments.papers.kunin2021.shorthand import CAPTION, exact_claims, overlay
from lawful.experiments.records import Figure, Section


def stage(settings: Settings, seed: int, progress: Progress) -> Section:
    """Heavy-ball SGD with weight decay: exact recursions; the damped oscillator of the translation charge."""
    beta = settings.momentum
    runs = sgd_runs(settings, seed, progress, beta, (1, 2))
    claims = exact_claims("momentum", "Momentum and weight decay", settings, runs[1], beta)
    missed = [
        np.median([
            off(r["translation"], oscillator(r["translation"].t, r["translation"].q[0], lr=settings.lr / h,
                                              decay=settings.decay, momentum=beta))
            for r in group
        ])
        for h, group in runs.items()
    ]  # fmt: skip
    claims.append(
        Claim.close(
            "momentum.translation.oscillator",
            "Section 5",
            "The damped oscillator misses the translation charge by O(lr): exponent between lr and lr/2.",
            math.log2(float(missed[0] / missed[1])),
            1.0,
            abs=0.25,
        )
    )
    first = runs[1][0]
    panels = []
    for key, symmetry in SYMMETRIES.items():
        exact = recursion(first[key], symmetry.power, lr=settings.lr, decay=settings.decay, momentum=beta)
        predictions = {"exact recursion": exact}
        if key == "translation":
            predictions["damped oscillator"] = oscillator(
                first[key].t, first[key].q[0], lr=settings.lr, decay=settings.decay, momentum=beta
            )
        panels.append(overlay(symmetry.title, first[key], predictions))
    return Section(
        id="momentum",
        title="Momentum: charges become oscillators",
        paper_says=(
            "With momentum $\\beta$ the translation charge is a damped harmonic oscillator driven by nothing; scale "
            "and rescale charges are driven by squared gradients."
        ),
        measured=(
            f"With β = {beta:g} the oscillator follows the translation charge to O(lr). All three charges obey an "
            "exact second-order recursion."
        ),
        equations=(
            r"\tfrac{\eta(1+\beta)}{2}\ddot s+(1-\beta)\dot s+\lambda s=0",
            r"r_s=\beta(r_{s-1}+2d_{s-1})-2\eta\lambda q_s,\qquad q_{s+1}=q_s+r_s+d_s",
        ),
        claims=claims,
        figures=(Figure("kunin-momentum", "Predicted forms laid over SGD with momentum and decay", CAPTION, panels),),
    )
