"""The certificate: a JSON file from which every statement of a law search can be checked again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lawful.errors import SettingError
from lawful.finder.residues import PRIME

if TYPE_CHECKING:
    from lawful.finder.circuits.search import CircuitSearch
    from lawful.finder.found import LawSearch

FORMAT: Final = "lawful law certificate 1"
CIRCUIT_FORMAT: Final = "lawful circuit law certificate 3"
"""Of networks that are no plain MLPs (:mod:`lawful.finder.circuits.certificate`)."""


def certificate_of(search: LawSearch) -> dict[str, Any]:
    """The search as plain data: system, prime, points, ranks, laws as polynomials, and a digest of all of it.

    Variables are numbered as in ``variables``; a law is a list of [coefficient, [variable, …]].
    """
    symbols_names = search.laws[0].symbols.names if search.laws else []
    content: dict[str, Any] = {
        "format": FORMAT,
        "system": {
            "widths": list(search.architecture.widths),
            "activation": search.architecture.activation,
            "biases": list(search.architecture.biases),
            "rule": search.rule,
            "geometry": search.system.geometry,
            "decay": list(search.system.decay),
            "softmax": search.system.softmax,
            "feedback": [_texts(block) for block in search.system.exact[1:]],
            "inputs": None if search.system.inputs is None else _texts(search.system.inputs),
        },
        "variables": symbols_names,
        **findings(search),
    }
    return {**content, "sha256": digest(content)}


def findings(search: LawSearch | CircuitSearch) -> dict[str, Any]:
    """What every certificate says: counts, prime, points and ranks, laws as polynomials."""
    return {
        "count": search.count,
        "bound": search.bound,
        "certified": search.certified,
        "dimension": search.dimension,
        "prime": PRIME,
        "points": [
            {
                "seed": rank.seed,
                "state": [[int(x) for x in block.ravel()] for block in rank.point],
                "levels": rank.levels,
                "samples": rank.samples,
                "rank": rank.rank,
            }
            for rank in search.ranks
        ],
        "laws": [
            {
                "name": law.name,
                "kind": law.kind,
                "formula": law.formula,
                "given_feedback": law.numeric,
                "polynomial": [[str(c), list(m)] for m, c in sorted(law.terms.items())],
            }
            for law in search.laws
        ],
    }


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON without the digest itself."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def save_certificate(search: LawSearch | CircuitSearch, path: str | os.PathLike[str]) -> None:
    """Write the certificate; never half of it under its final name.

    Raises:
        SettingError: the file cannot be written.
    """
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    try:
        partial.write_text(json.dumps(search.certificate, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, target)
    except OSError as error:
        raise SettingError(f"certificate: cannot write {target}: {error.strerror}") from error


def load_certificate(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a certificate.

    Raises:
        SettingError: no such file, or no certificate.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"certificate: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise SettingError(f"certificate: {path} is no JSON file: {error}") from error
    if not isinstance(content, dict) or content.get("format") not in (FORMAT, CIRCUIT_FORMAT):
        raise SettingError(
            f"certificate: {path} is no law certificate (format must be {FORMAT!r} or {CIRCUIT_FORMAT!r})"
        )
    return content


def _texts(block: np.ndarray) -> list[list[str]]:
    return [[str(Fraction(x)) for x in row] for row in block]
