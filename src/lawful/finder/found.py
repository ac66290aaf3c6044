"""What a law search answers: laws, each with its polynomial, and how far they are all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lawful.finder.architectures import Architecture
from lawful.finder.fields import System
from lawful.finder.lie_algebra import LieRank
from lawful.finder.polynomials import Polynomial
from lawful.finder.symbols import Symbols
from lawful.finder.values import evaluate


@dataclass(frozen=True)
class FoundLaw:
    """One conserved quantity, proved.

    Attributes:
        name: "neuron law of layer 1, neuron 2", or "new polynomial law 3".
        kind: the family of laws it belongs to.
        formula: in the letters of the theory.
        polynomial: the same, written out.
    """

    name: str
    kind: str
    formula: str
    polynomial: str
    terms: Polynomial = field(repr=False)
    symbols: Symbols = field(repr=False)
    numeric: bool = field(repr=False, default=False)

    @property
    def _has_numbers_of_B(self) -> bool:  # noqa: N802 - B is the letter of the mathematics
        """Whether its coefficients depend on the numbers of B; directions that no error reaches not on the s of usf."""
        family = self.symbols.system.family
        kinds = ("polynomial",) if family.name == "usf" else ("polynomial", "range")
        return self.numeric and (family.source == "fixed" or (family.source == "sign" and self.kind in kinds))

    def value(
        self,
        W: Sequence[Any],
        b: Sequence[Any] | None = None,
        B: Sequence[Any] | None = None,
        *,
        t: float | None = None,
        velocity: Sequence[Any] | None = None,
    ) -> float:
        """The quantity at given weights, and under decay and momentum at a given time.

        Args:
            W: W_1 … W_L, each (out, in).
            b: b_1 … b_L, or None without biases.
            B: B_2 … B_L (for direct rules D_1 … D_{L-1}, each (outputs, n_i); for magnitude rules M_2 … M_L; for
                Kolen-Pollack the moving B's); not needed by backpropagation. Without it those of the search are taken,
                and for uniform sign symmetry the s of its rule.
            t: time, geometry "decay": λ · flow time, "momentum": γ · flow time; the other geometry has none.
            velocity: geometry "momentum": (V, c, C), the derivatives of W, b and a moving B by this t, so θ̇/γ.

        Raises:
            SettingError: an argument that is missing, superfluous or of the wrong shape; another B than that of the
                search, for laws with numbers of it in their formula.
        """
        return evaluate(self.symbols, self.terms, (W, b, B), t, velocity, numbers=self._has_numbers_of_B)


@dataclass(frozen=True)
class LawSearch:
    """What is known about the laws of a rule on a network.

    Attributes:
        count: independent laws found and proved.
        bound: no more than this many exist (state dimension - Lie rank).
        certified: count equals bound, every law is proved: these are all.
        laws: independent laws.
        architecture: what was searched.
        rule: registry name of the rule.
        dimension: coordinates of the state.
        ranks: one rank computation a point.
        system: the network under the rule at the first point.
        seconds: how long it took.
        interrupted: Ctrl-C cut the search short; count and bound are still right.
    """

    count: int
    bound: int
    certified: bool
    laws: tuple[FoundLaw, ...]
    architecture: Architecture
    rule: str
    dimension: int
    ranks: tuple[LieRank, ...] = field(repr=False)
    system: System = field(repr=False)
    seconds: float = field(repr=False, compare=False)
    interrupted: bool = False

    @property
    def certificate(self) -> dict[str, Any]:
        """Everything needed to check the answer again, as JSON-ready data (:mod:`lawful.finder.certificate`)."""
        from lawful.finder.certificate import certificate_of

        return certificate_of(self)

    @property
    def gap(self) -> str:
        """Why this is no certificate, in one sentence; empty when it is one."""
        if self.certified:
            return ""
        if self.architecture.sigma.degree is None:
            return f"{self.architecture.activation} is bounded from above only: its laws are never certified"
        if self.interrupted:
            return "the search was interrupted"
        return f"up to {self.bound - self.count} further laws are neither found nor excluded; try a higher degree"

    def __str__(self) -> str:
        widths = ", ".join(map(str, self.architecture.widths))
        head = f"{self.rule} ({widths}) {self.architecture.activation}: "
        if self.certified:
            return head + f"{self.count} independent laws, and these are all (certified)"
        return head + f"at least {self.count}, at most {self.bound} independent laws"
