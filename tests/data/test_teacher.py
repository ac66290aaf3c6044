"""The Gaussian teacher: a noiseless linear problem whose minimum-norm solution is known otherwise too."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lawful.data.teacher import gaussian_teacher
from lawful.errors import SettingError


@given(n=st.integers(1, 8), d=st.integers(1, 8), m=st.integers(1, 3), seed=st.integers(0, 10))
def test_minimum_norm_fits_and_is_the_shortest(n, d, m, seed):
    problem = gaussian_teacher(n, d, m, scale=2.0, rng=np.random.default_rng(seed))
    reference = np.linalg.lstsq(problem.X, problem.Y, rcond=None)[0]
    np.testing.assert_allclose(problem.minimum_norm, reference, atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(problem.teacher, axis=0), 2.0)
    # P_⊥ is the projector on the null space: it kills every sample, and it is idempotent
    np.testing.assert_allclose(problem.X @ problem.null_projector, 0, atol=1e-7)
    np.testing.assert_allclose(problem.null_projector @ problem.null_projector, problem.null_projector, atol=1e-7)


def test_unscaled_teacher_is_gaussian():
    teacher = gaussian_teacher(1, 20_000, 1, scale=None, rng=np.random.default_rng(0)).teacher
    assert abs(teacher.std() - 1) < 0.03


@pytest.mark.parametrize(("n", "d", "m", "scale"), [(0, 1, 1, 1.0), (1, 0, 1, 1.0), (1, 1, 0, None), (1, 1, 1, -1.0)])
def test_refuses(n, d, m, scale):
    with pytest.raises(SettingError):
        gaussian_teacher(n, d, m, scale=scale, rng=np.random.default_rng(0))
