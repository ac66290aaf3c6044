"""Kunin et al. 2021: what weight decay, momentum and finite steps make of the laws, predicted and laid over SGD."""

from __future__ import annotations

from lawful.experiments.paper import Paper
from lawful.experiments.papers.kunin2021 import decay, feedback, momentum
from lawful.experiments.papers.kunin2021.settings import QUICK, Settings

PAPER = Paper(
    id="kunin2021",
    title="Neural Mechanics: Symmetry and Broken Conservation Laws in Deep Learning Dynamics",
    citation=(
        "Daniel Kunin, Javier Sagastuy-Brena, Surya Ganguli, Daniel L. K. Yamins and Hidenori Tanaka, Neural "
        "Mechanics, "
        "ICLR 2021, arXiv:2012.04728"
    ),
    settings=Settings,
    quick=QUICK,
    stages={"decay": decay.stage, "momentum": momentum.stage, "feedback": feedback.stage},
)
"""The paper as ``lawful reproduce kunin2021`` runs it."""
