"""The knobs of the reproduction: the paper states no sizes, so the defaults are ours."""

from __future__ import annotations

from dataclasses import dataclass

from lawful.experiments.ranges import check_ranges

_LIMITS = {"n": (1, 10_000), "d": (1, 1_000), "width": (1, 1_000), "outputs": (1, 1_000), "depth": (2, 12)}
_LIMITS |= {"steps": (8, 1_000_000), "seeds": (1, 1_000), "size": (2, 1_000), "factor_steps": (8, 1_000_000)}


@dataclass(frozen=True)
class Settings:
    """Sizes and step sizes.

    Args:
        n: Samples.
        d: Inputs.
        width: Neurons of each hidden layer.
        outputs: Outputs.
        depth: Weight matrices.
        lr: Step size of the discrete runs on networks; they run to time lr · steps.
        steps: Their number of steps.
        size: M of the factorisation is size × size, of rank 2, with singular values 1 and 1/2.
        factor_lr: Step size of the factorisation.
        factor_steps: Its number of steps.
        small: Standard deviation of the small balanced start.
        seeds: Independent draws.
    """

    n: int = 30
    d: int = 10
    width: int = 12
    outputs: int = 3
    depth: int = 3
    lr: float = 0.02
    steps: int = 1000
    size: int = 20
    factor_lr: float = 0.02
    factor_steps: int = 4000
    small: float = 1e-3
    seeds: int = 5

    def validate(self) -> None:
        """Check ranges.

        Raises:
            SettingError: one line that names the key, the allowed values and what came.
        """
        check_ranges(self, _LIMITS)


QUICK = {"seeds": 2, "steps": 400, "factor_steps": 2000}
"""What ``--quick`` replaces."""
