"""Arithmetic modulo p against Python integers and python-flint."""

from fractions import Fraction

import flint
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lawful.finder import residues as ff
from lawful.finder.nullspace import reconstruct


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 20), st.integers(0, 1000))
def test_rank_equals_flint(rows, columns, inner, seed):
    rng = np.random.default_rng(seed)
    a = ff.product(ff.random_residues(rng, (rows, inner)), ff.random_residues(rng, (inner, columns)))
    a = np.broadcast_to(a, (rows, columns))
    expected = flint.nmod_mat(rows, columns, [int(x) % ff.PRIME for x in a.ravel()], ff.PRIME).rank()
    echelon = ff.Echelon(columns)
    independent = [i for start in range(0, rows, 7) for i in echelon.add(a[start : start + 7])]
    assert echelon.rank == expected == len(independent)
    null = echelon.null_space()
    assert len(null) == columns - expected
    assert not ff.product(a, null.T).any()


def test_product_is_exact_for_long_sums():
    rng = np.random.default_rng(0)
    a, b = ff.random_residues(rng, (3, 2000)), ff.random_residues(rng, (2000, 2))
    exact = (a.astype(int).astype(object) @ b.astype(int).astype(object)) % ff.PRIME
    assert ((ff.product(a, b).astype(int) % ff.PRIME) == exact).all()


def test_large_echelon_crosses_every_block_size():
    rng = np.random.default_rng(1)
    a = ff.random_residues(rng, (1100, 300))
    a = np.concatenate(
        [a, ff.product(ff.random_residues(rng, (1100, 300)), ff.random_residues(rng, (300, 400)))], axis=1
    )
    echelon = ff.Echelon(700)
    echelon.add(a)
    expected = flint.nmod_mat(*a.shape, [int(x) % ff.PRIME for x in a.ravel()], ff.PRIME).rank()
    assert echelon.rank == expected == 600


def test_nested_duals_differentiate():
    x = np.array([3.0])
    nested = ff.Dual(ff.Dual(x, np.array([1.0])), ff.Dual(np.array([1.0]), None))
    cube = ff.times(nested, ff.times(nested, nested))
    assert cube.im.im[0] == 6 * 3
    assert ff.constant_part(cube)[0] == 27


@given(st.integers(-2000, 2000), st.integers(1, 2000))
def test_fractions_come_back(n, d):
    assert reconstruct(int(ff.residue(Fraction(n, d)))) == Fraction(n, d)
