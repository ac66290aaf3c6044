"""The papers that ``lawful reproduce`` knows; a light table, so that listing them imports none of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lawful.errors import SettingError

if TYPE_CHECKING:
    from lawful.experiments.paper import Paper

PAPERS: dict[str, tuple[str, str]] = {
    "robertson2023": (
        "Robertson & Koyejo 2023, Layer-Wise Feedback Alignment is Conserved in Deep Neural Networks",
        "lawful.experiments.papers.robertson2023",
    ),
    "du2018": (
        "Du, Hu & Lee 2018, Layers are Automatically Balanced",
        "lawful.experiments.papers.du2018",
    ),
    "kunin2021": (
        "Kunin et al. 2021, Neural Mechanics: Symmetry and Broken Conservation Laws",
        "lawful.experiments.papers.kunin2021",
    ),
    "marcotte2025": (
        "Marcotte, Gribonval & Peyré 2025, Conservation laws for ResNets and Transformers",
        "lawful.experiments.papers.marcotte2025",
    ),
    "lawcounts": (
        "How many quantities do learning rules conserve? Certified counts for ten rules",
        "lawful.experiments.papers.lawcounts",
    ),
}
"""Paper id -> (title, module); the module defines ``PAPER``."""


def load_paper(name: str) -> Paper:
    """The paper called ``name``.

    Raises:
        SettingError: No paper has this name.
    """
    if name not in PAPERS:
        raise SettingError(f"unknown paper {name!r}; expected one of: {', '.join(PAPERS)}")
    return importlib.import_module(PAPERS[name][1]).PAPER
