"""An audited training as a paper of one stage, so that it is stored, resumed and reported like a reproduction."""

from __future__ import annotations

from lawful.experiments.audit.stage import Settings, stage
from lawful.experiments.paper import Paper
from lawful.training.audit import BROKEN

PAPER = Paper(
    id="audit",
    title="What broke conservation, and when",
    citation=f"Every conservation law of the model on a ledger; broken means moved by {100 * BROKEN:g} %.",
    settings=Settings,
    stages={"audit": stage},
)
"""What ``lawful audit`` runs."""
