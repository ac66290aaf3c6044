"""Robertson & Koyejo 2023: every statement of the paper, measured; one file per stage."""

from __future__ import annotations

from lawful.experiments.paper import Paper
from lawful.experiments.papers.robertson2023 import corollary, depth, digits, figures, law, minimum_norm, rate
from lawful.experiments.papers.robertson2023.settings import QUICK, Settings

PAPER = Paper(
    id="robertson2023",
    title="Layer-Wise Feedback Alignment is Conserved in Deep Neural Networks",
    citation=(
        "Zachary Robertson and Oluwasanmi Koyejo, Layer-Wise Feedback Alignment is Conserved in Deep Neural Networks, "
        "arXiv:2306.01870v1, 2023"
    ),
    settings=Settings,
    quick=QUICK,
    stages={
        "figures": figures.stage,
        "law": law.stage,
        "depth": depth.stage,
        "corollary": corollary.stage,
        "minnorm": minimum_norm.stage,
        "rate": rate.stage,
        "digits": digits.stage,
    },
)
"""The paper as ``lawful reproduce robertson2023`` runs it."""
