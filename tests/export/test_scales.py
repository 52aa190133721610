"""Weights in 8 bits: what x86 without VNNI adds up in 16 bits fits, and no more is given up for it than must be."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from heedful.export.scales import MOST, column_scales, fitted, in_units

Integers = NDArray[np.int64]


def sides(units: Integers) -> list[Integers]:
    """What the weights of each pair come to, (pairs, n), those above zero and those below."""
    whole = np.concatenate([units, np.zeros((len(units) % 2, units.shape[1]), np.int64)])
    return [np.clip(sign * whole, 0, None).reshape(-1, 2, units.shape[1]).sum(axis=1) for sign in (1, -1)]


@settings(max_examples=200)
@given(k=st.integers(1, 66), n=st.integers(1, 9), seed=st.integers(0, 10**6), tail=st.sampled_from([1, 3, 9]))
def test_two_neighbours_fit_into_sixteen_bits(k: int, n: int, seed: int, tail: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((k, n), np.float32) ** tail
    scales = column_scales(weight)
    units = in_units(weight, scales).astype(np.int64)
    assert np.abs(units).max() <= MOST
    assert 255 * np.max(sides(units)) < 2**15
    # nothing but rounding is lost, and a column's largest pair takes up all there is
    assert (np.abs(units * scales - weight) <= 0.501 * scales).all()
    tiny = np.abs(weight).max(axis=0) < 1e-9
    assert (tiny | (np.max(sides(units), axis=(0, 1)) >= MOST - 1)).all()


@settings(max_examples=200)
@given(k=st.integers(1, 66), n=st.integers(1, 9), seed=st.integers(0, 10**6), spread=st.sampled_from([20, 60, 200]))
def test_with_a_given_scale_pairs_give_up_what_is_too_much(k: int, n: int, seed: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    wanted = np.rint(rng.normal(0, spread, (k, n))).clip(-MOST, MOST).astype(np.int64)
    scales = rng.uniform(0.1, 2, n).astype(np.float32)
    units = in_units((wanted * scales).astype(np.float32), scales).astype(np.int64)
    assert 255 * np.max(sides(units)) < 2**15
    for column in range(n):
        for first in range(0, k, 2):
            pair, found = wanted[first : first + 2, column], units[first : first + 2, column]
            excess = max(abs(pair.sum()) - 128, 0) if len(pair) == 2 and pair.prod() > 0 else 0
            assert np.abs(pair - found).sum() == excess
            assert np.abs(pair - found).max() <= (excess + 1) // 2


def test_a_given_scale_grows_where_that_loses_less() -> None:
    """Columns of many small weights beside a pair that is a little too much, far too much, or of two signs."""
    rng = np.random.default_rng(0)
    weight = np.rint(rng.normal(0, 10, (64, 3))).astype(np.float32)
    weight[:2] = [[65, 120, 127], [65, 120, -127]]
    stated = np.ones(3, np.float32)
    assert (fitted(weight, stated) > stated).tolist() == [False, True, False]


def test_a_weight_of_zeros_has_a_scale() -> None:
    zeros = np.zeros((3, 2), np.float32)
    assert (column_scales(zeros) > 0).all()
    assert not in_units(zeros, column_scales(zeros)).any()
