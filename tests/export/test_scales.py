"""Scales of weights in 8 bits: what x86 without VNNI adds up in 16 bits fits, and none is larger than it must."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from heedful.export.scales import MOST, column_scales


@settings(max_examples=200)
@given(k=st.integers(1, 66), n=st.integers(1, 9), seed=st.integers(0, 10**6), tail=st.sampled_from([1, 3, 9]))
def test_two_neighbours_fit_into_sixteen_bits(k: int, n: int, seed: int, tail: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((k, n), np.float32) ** tail
    scales = column_scales(weight)
    codes = np.rint(weight / scales).astype(int)
    for column in codes.T:
        for first, second in zip(column[::2], [*column[1::2], 0], strict=False):
            products = [255 * first * a + 255 * second * b for a in (0, 1) for b in (0, 1)]
            assert -(2**15) <= min(products) <= max(products) < 2**15
            assert max(abs(first), abs(second)) <= MOST
    # a column's largest pair, or largest weight, takes up all there is, but for the rounding
    sides = [np.clip(sign * codes, 0, None) for sign in (1, -1)]
    together = [side[: k - k % 2].reshape(-1, 2, n).sum(axis=1).max(axis=0, initial=0) for side in sides]
    assert (np.max([np.abs(codes).max(axis=0), *together], axis=0) >= MOST - 1).all()


def test_a_weight_of_zeros_has_a_scale() -> None:
    assert (column_scales(np.zeros((3, 2), np.float32)) > 0).all()
