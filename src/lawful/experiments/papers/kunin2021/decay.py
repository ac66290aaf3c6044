"""Section 5: weight decay makes charges fall exponentially, and finite steps feed them."""

from __future__ import annotations

import math

import numpy as np

from lawful.experiments.claims import Claim
from lawful.experiments.paper import Progress
from lawful.experiments.papers.kunin2021.charges import SYMMETRIES, sgd_runs
from lawful.experiments.papers.kunin2021.predictions import integral, off
from lawful.experiments.papers.kunin2021.settings import Settings
from lawful.experiments.papers.kunin2021.shorthand import CAPTION, exact_claims, overlay
from lawful.experiments.records import Figure, Section


def stage(settings: Settings, seed: int, progress: Progress) -> Section:
    """SGD with weight decay: the three symmetries, the exact recursion, and the paper's integral form."""
    runs = sgd_runs(settings, seed, progress, 0.0, (1, 2))
    claims = exact_claims("decay", "SGD with weight decay", settings, runs[1], 0.0)
    for key, symmetry in SYMMETRIES.items():
        missed = {h: [off(r[key], integral(r[key], symmetry.power, decay=settings.decay)) for r in group]
               for h, group in runs.items()}  # fmt: skip
        order = math.log2(float(np.median(missed[1])) / float(np.median(missed[2])))
        claims.append(
            Claim.at_least(
                f"decay.{key}.integral",
                "Section 5",
                f"The exponential form of {symmetry.text} misses SGD by O(lr) or less: exponent between lr and lr/2.",
                order,
                0.75,
            )
        )
    first = runs[1][0]
    panels = [
        overlay(symmetry.title, first[key], {
            "exponential form": integral(first[key], symmetry.power, decay=settings.decay),
            "decay alone": np.exp(-symmetry.power * settings.decay * first[key].t)[:, None] * first[key].q[0],
        })
        for key, symmetry in SYMMETRIES.items()
    ]  # fmt: skip
    return Section(
        id="decay",
        title="Weight decay: charges fall exponentially, finite steps feed them",
        paper_says=(
            "Symmetries of the architecture give conserved charges of gradient flow. With weight decay $\\lambda$ a "
            "translation charge falls like $e^{-\\lambda t}$, scale and rescale charges like $e^{-2\\lambda t}$ plus "
            "an integral of squared gradients that finite learning rates add."
        ),
        measured=(
            f"{settings.seeds} classifiers with minibatch SGD. The exponential forms follow the run to O(lr); with the "
            "powers $(1-\\eta\\lambda)^s$ in place of exponentials the prediction is exact to rounding."
        ),
        equations=(
            r"q(t)=e^{-2\lambda t}\Big(q(0)+\tfrac{\eta}{2}\int_0^te^{2\lambda\tau}\big(\|g_p\|^2-\|g_c\|^2\big)d\tau"
            r"\Big),\qquad q_{s+1}=(1-\eta\lambda)^2q_s+\tfrac{\eta^2}{2}\big(\|g_p\|^2-\|g_c\|^2\big)",
        ),
        claims=claims,
        figures=(Figure("kunin-decay", "Predicted forms laid over SGD with weight decay", CAPTION, panels),),
    )
