"""The knobs of the reproduction: what the paper leaves open, or what a reader wants to change."""

from __future__ import annotations

from dataclasses import dataclass

from lawful.errors import SettingError
from lawful.experiments.ranges import check_ranges
from lawful.flows.activations import ACTIVATIONS

_MAX_DEPTH = 12


@dataclass(frozen=True)
class Settings:
    """Sizes, scales and step size; the paper states none of n, d, width, lr, so the defaults are ours.

    Args:
        n: Samples.
        d: Inputs; d > n is the overparameterised case of Section 6.
        width: Neurons of each hidden layer.
        depth: Weight matrices of the networks of Figures 1 and 2, Theorem 5.1 and the corollary.
        outputs: Outputs of those networks.
        activation: The nonlinear network that stands beside the linear one.
        init_scale: Standard deviation of the first layer; the paper's "N(0, 1/10)" may be this or its square.
        target_scale: Norm of each column of the noiseless linear target w*.
        lr: Step size of the discrete runs; flow time is lr · step.
        steps: Steps of the discrete runs; the flows run to time lr · steps.
        seeds: Independent draws of data and weights.
        digits_epochs: Epochs on the digits.
    """

    n: int = 20
    d: int = 50
    width: int = 30
    depth: int = 2
    outputs: int = 1
    activation: str = "relu"
    init_scale: float = 0.1
    target_scale: float = 1.0
    lr: float = 1e-3
    steps: int = 2000
    seeds: int = 5
    digits_epochs: int = 10

    def validate(self) -> None:
        """Check types and ranges.

        Raises:
            SettingError: one line that names the key, the allowed values and what came.
        """
        check_ranges(self, _RANGES)
        if self.activation not in ACTIVATIONS:
            raise SettingError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {self.activation!r}")

    @property
    def time(self) -> float:
        """The flow time that ``steps`` discrete steps reach."""
        return self.lr * self.steps

    @property
    def activations(self) -> tuple[str, ...]:
        """The two networks of the figures: linear, and the nonlinear one."""
        return tuple(dict.fromkeys(("linear", self.activation)))


_RANGES = {
    "n": (1, 10_000),
    "d": (1, 10_000),
    "width": (1, 10_000),
    "depth": (2, _MAX_DEPTH),
    "outputs": (1, 1_000),
    "steps": (8, 1_000_000),
    "seeds": (1, 1_000),
    "digits_epochs": (1, 1_000),
}
QUICK = {"seeds": 2, "steps": 500, "digits_epochs": 3}
"""What ``--quick`` replaces."""
