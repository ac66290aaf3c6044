"""Beyond the paper: the law of feedback alignment under weight decay."""

from __future__ import annotations

import numpy as np
import torch

from lawful.attachment.attachment import attach
from lawful.experiments.paper import Progress
from lawful.experiments.papers.kunin2021.charges import ROUNDING, SYMMETRIES, chosen_law, classifier, train
from lawful.experiments.papers.kunin2021.predictions import off, recursion
from lawful.experiments.papers.kunin2021.settings import Settings
from lawful.experiments.papers.kunin2021.shorthand import CAPTION, overlay
from lawful.experiments.papers.robertson2023.shorthand import negligible
from lawful.experiments.records import Figure, Section
from lawful.rules.feedback_alignment import FeedbackAlignment


def stage(settings: Settings, seed: int, progress: Progress) -> Section:
    """Beyond the paper: feedback alignment keeps the rescale law, with decay λ below and 2λ above."""
    symmetry, records = SYMMETRIES["rescale"], []
    for number in range(settings.seeds):
        progress.update(number / settings.seeds, f"draw {number}")
        model = classifier(seed, number)
        attach(model, FeedbackAlignment(seed=1000 * seed + number))
        upper = list(model[5].parameters())
        lower = [p for p in model.parameters() if all(p is not u for u in upper)]
        groups = [{"params": lower}, {"params": upper, "weight_decay": 2 * settings.decay}]
        optimizer = torch.optim.SGD(groups, lr=settings.lr, weight_decay=settings.decay)
        rng = np.random.default_rng([seed, number])
        laws = {"rescale": chosen_law(model, symmetry)}
        run = train(model, optimizer, laws, settings, rng, lr=settings.lr, num_steps=settings.steps)
        records.append(run["rescale"])
    worst = max(off(r, recursion(r, 2, lr=settings.lr, decay=settings.decay)) for r in records)
    first = records[0]
    alone = np.exp(-2 * settings.decay * first.t)[:, None] * first.q[0]
    return Section(
        id="feedback",
        title="Feedback alignment under weight decay",
        paper_says="Only gradients are considered.",
        measured=(
            "Feedback alignment is the gradient of nothing, yet its law decays as cleanly when the reading layer has "
            "twice the decay, since $\\langle W,B\\rangle$ is linear in $W$ where $\\frac12\\|W\\|^2$ is quadratic. "
            "Finite steps feed it."
        ),
        equations=(
            r"\tfrac12\|W_i[j]\|^2+\tfrac12b_i[j]^2-\langle W_{i+1}[:,j],B_{i+1}[:,j]\rangle\;\propto\;e^{-2\lambda t}",
        ),
        claims=[
            negligible(
                "feedback.rescale.exact",
                "beyond the paper",
                "Feedback alignment, decay λ below and 2λ above: q[s+1] = (1 − 2·lr·λ) q[s] + finite step (relative).",
                worst,
                ROUNDING,
            )
        ],
        figures=(
            Figure("kunin-feedback", "The feedback law under weight decay", CAPTION, [
                overlay("feedback alignment", first, {
                    "exact recursion": recursion(first, 2, lr=settings.lr, decay=settings.decay), "decay alone": alone,
                }),
            ]),
        ),
    )  # fmt: skip
