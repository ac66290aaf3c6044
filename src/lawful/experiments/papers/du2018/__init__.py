"""Du, Hu & Lee 2018: layers trained by backpropagation stay balanced; finite steps move them by O(lr)."""

from __future__ import annotations

from lawful.experiments.paper import Paper
from lawful.experiments.papers.du2018 import factorisation, flow, steps
from lawful.experiments.papers.du2018.settings import QUICK, Settings

PAPER = Paper(
    id="du2018",
    title="Algorithmic Regularization in Learning Deep Homogeneous Models: Layers are Automatically Balanced",
    citation=(
        "Simon S. Du, Wei Hu and Jason D. Lee, Algorithmic Regularization in Learning Deep Homogeneous Models: Layers "
        "are "
        "Automatically Balanced, NeurIPS 2018, arXiv:1806.00900"
    ),
    settings=Settings,
    quick=QUICK,
    stages={"flow": flow.stage, "steps": steps.stage, "factorisation": factorisation.stage},
)
"""The paper as ``lawful reproduce du2018`` runs it."""
