"""The one stage of an audit: train with the laws on the ledger; what was found as words, tables and figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lawful.experiments.audit.figures import figures
from lawful.experiments.audit.words import FORM, laws_table, summary, theory
from lawful.experiments.claims import Claim
from lawful.experiments.paper import Progress
from lawful.experiments.papers.robertson2023.shorthand import negligible
from lawful.experiments.records import Section
from lawful.training import settings as training_settings
from lawful.training.audit import Audit, audit

BOOKS: Final = 1e-10
"""Relative remainder, violation and miss of a prediction allowed: what the ledger promises in float64."""


@dataclass(frozen=True)
class Settings(training_settings.Settings):
    """Those of a training run."""

    def validate(self) -> None:
        """Does nothing: they are checked when they are made."""


def stage(settings: Settings, seed: int, progress: Progress) -> Section:
    """Train with the laws on the ledger; ``seed`` is that of the settings."""
    found = audit(settings, progress.update, progress.scratch)
    return Section(
        id="audit",
        title=f"{settings.model} on {settings.data} by {settings.rule} with {settings.optimizer}, lr {settings.lr:g}",
        paper_says=theory(found, settings),
        measured=summary(found, settings),
        equations=_equations(found),
        claims=_checks(found),
        figures=figures(found, settings),
        tables=[laws_table(found)],
        arrays={
            "steps": found.steps,
            **{f"{i}.{site.name}.q".replace("/", "_"): site.q for i, site in enumerate(found.sites)},
        },
    )


def _equations(found: Audit) -> tuple[str, ...]:
    books = r"q(t)=q(0)+\text{rule}+\text{finite step}+\text{weight decay}+\text{momentum}+\text{preconditioning}"
    return (books, FORM) if any(site.predicted is not None for site in found.sites) else (books,)


def _checks(found: Audit) -> list[Claim]:
    checks = [
        negligible("audit.rule", "conservation", "The backward pass itself moves no law (largest relative part).",
                   found.violation, BOOKS),
        negligible("audit.books", "conservation", "The causes explain every change of every law (largest relative "
                   "remainder).", found.residual, BOOKS),
    ]  # fmt: skip
    predicted = [site.missed for site in found.sites if site.predicted is not None]
    if predicted:
        checks.append(
            negligible("audit.form", "Kunin et al. 2021, Section 5", f"{len(predicted)} laws follow the form predicted "
                       "from q(0) and the finite steps (largest relative miss).", max(predicted), BOOKS)
        )  # fmt: skip
    for at, guarantee in enumerate(found.guarantees):
        margin = float((guarantee.alignment - guarantee.bound).min())
        checks.append(
            Claim.at_least(f"audit.guarantee.{at}", "Corollary of Theorem 5.1", f"{guarantee.law}: every neuron's "
                           "alignment ⟨W, B⟩ lies above its guaranteed bound (smallest margin).", margin, 0.0)
        )  # fmt: skip
    return checks
