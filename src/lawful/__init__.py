"""lawful: train any PyTorch model with a feedback learning rule, and prove which quantities training conserves."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lawful.attachment.attachment import Attachment as Attachment
    from lawful.attachment.attachment import attach as attach
    from lawful.attachment.attachment import attachment_of as attachment_of
    from lawful.attachment.registry import register as register
    from lawful.checking import LawCheck as LawCheck
    from lawful.checking import assert_lawful as assert_lawful
    from lawful.checking import lawcheck as lawcheck
    from lawful.conservation.base import Law as Law
    from lawful.conservation.base import LawSet as LawSet
    from lawful.conservation.derive import laws_of as laws_of
    from lawful.finder.search import FoundLaw as FoundLaw
    from lawful.finder.search import LawSearch as LawSearch
    from lawful.finder.search import find_laws as find_laws
    from lawful.ledger.ledger import Ledger as Ledger
    from lawful.rules.backprop import Backprop as Backprop
    from lawful.rules.base import Rule as Rule
    from lawful.rules.batchwise_magnitude_sign_symmetry import (
        BatchwiseMagnitudeSignSymmetry as BatchwiseMagnitudeSignSymmetry,
    )
    from lawful.rules.direct_base import DirectRule as DirectRule
    from lawful.rules.direct_feedback_alignment import DirectFeedbackAlignment as DirectFeedbackAlignment
    from lawful.rules.direct_random_target_projection import (
        DirectRandomTargetProjection as DirectRandomTargetProjection,
    )
    from lawful.rules.feedback_alignment import FeedbackAlignment as FeedbackAlignment
    from lawful.rules.fixed_magnitude_sign_symmetry import FixedMagnitudeSignSymmetry as FixedMagnitudeSignSymmetry
    from lawful.rules.kolen_pollack import KolenPollack as KolenPollack
    from lawful.rules.low_rank_feedback import LowRankFeedback as LowRankFeedback
    from lawful.rules.monotone_dfa import MonotoneDFA as MonotoneDFA
    from lawful.rules.registry import parse_rule as parse_rule
    from lawful.rules.registry import rule_named as rule_named
    from lawful.rules.rho_aligned_feedback import RhoAlignedFeedback as RhoAlignedFeedback
    from lawful.rules.shared_projection import SharedProjection as SharedProjection
    from lawful.rules.sign_feedback_alignment import SignFeedbackAlignment as SignFeedbackAlignment
    from lawful.rules.sparse_feedback import SparseFeedback as SparseFeedback
    from lawful.rules.uniform_sign_symmetry import UniformSignSymmetry as UniformSignSymmetry
    from lawful.rules.weight_mirror import WeightMirror as WeightMirror

__version__ = "0.1.0"

_HOME = {
    "attach": "lawful.attachment.attachment",
    "attachment_of": "lawful.attachment.attachment",
    "register": "lawful.attachment.registry",
    "Attachment": "lawful.attachment.attachment",
    "Backprop": "lawful.rules.backprop",
    "FeedbackAlignment": "lawful.rules.feedback_alignment",
    "UniformSignSymmetry": "lawful.rules.uniform_sign_symmetry",
    "FixedMagnitudeSignSymmetry": "lawful.rules.fixed_magnitude_sign_symmetry",
    "BatchwiseMagnitudeSignSymmetry": "lawful.rules.batchwise_magnitude_sign_symmetry",
    "KolenPollack": "lawful.rules.kolen_pollack",
    "WeightMirror": "lawful.rules.weight_mirror",
    "RhoAlignedFeedback": "lawful.rules.rho_aligned_feedback",
    "LowRankFeedback": "lawful.rules.low_rank_feedback",
    "SparseFeedback": "lawful.rules.sparse_feedback",
    "SignFeedbackAlignment": "lawful.rules.sign_feedback_alignment",
    "DirectFeedbackAlignment": "lawful.rules.direct_feedback_alignment",
    "DirectRandomTargetProjection": "lawful.rules.direct_random_target_projection",
    "MonotoneDFA": "lawful.rules.monotone_dfa",
    "SharedProjection": "lawful.rules.shared_projection",
    "Rule": "lawful.rules.base",
    "DirectRule": "lawful.rules.direct_base",
    "rule_named": "lawful.rules.registry",
    "parse_rule": "lawful.rules.registry",
    "lawcheck": "lawful.checking",
    "assert_lawful": "lawful.checking",
    "LawCheck": "lawful.checking",
    "laws_of": "lawful.conservation.derive",
    "Law": "lawful.conservation.base",
    "LawSet": "lawful.conservation.base",
    "Ledger": "lawful.ledger.ledger",
    "find_laws": "lawful.finder.search",
    "LawSearch": "lawful.finder.search",
    "FoundLaw": "lawful.finder.search",
    "LawfulError": "lawful.errors",
}
"""Public name -> the module that defines it; imported on first use, so ``import lawful`` stays light (PEP 562)."""

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'lawful' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
