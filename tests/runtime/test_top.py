"""The arithmetic of a search, beside a sort of everything and a sum in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heedful.runtime.engine.search import log_sum_exp, top

NONE = np.zeros((1, 1), np.float32)


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 4000), count=st.integers(1, 12), ruled_out=st.floats(0, 0.9))
def test_top_is_a_sort(seed: int, size: int, count: int, ruled_out: float) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.permutation(size).astype(np.float32)
    scores[rng.random(size) < ruled_out] = -np.inf
    count = max(1, min(count, np.isfinite(scores).sum()))
    found = top(scores[None], NONE, count)
    np.testing.assert_array_equal(found, np.argsort(-scores, kind="stable")[:count])


@given(
    seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 6), size=st.integers(1, 900), count=st.integers(1, 12),
    ruled_out=st.floats(0, 0.9),
)  # fmt: skip
def test_top_of_several_rows_is_a_sort_of_the_sums(
    seed: int, rows: int, size: int, count: int, ruled_out: float
) -> None:
    rng = np.random.default_rng(seed)
    # whole numbers, so that sums are exact; those of a row stay apart, those of two may be alike
    scores = rng.permuted(np.tile(np.arange(size, dtype=np.float32), (rows, 1)), axis=1)
    scores[rng.random(scores.shape) < ruled_out] = -np.inf
    offsets = rng.integers(-size, size + 1, (rows, 1)).astype(np.float32)
    count = max(1, min(count, np.isfinite(scores).sum()))
    found = top(scores, offsets, count)
    np.testing.assert_array_equal(found, np.argsort(-(scores + offsets).ravel(), kind="stable")[:count])


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 4000), count=st.integers(1, 12), levels=st.integers(1, 50))
def test_top_of_many_ties_holds_the_largest_values(seed: int, size: int, count: int, levels: int) -> None:
    scores = np.random.default_rng(seed).integers(levels, size=size).astype(np.float32)
    found = top(scores[None], NONE, count)
    assert len(set(found.tolist())) == min(count, size)
    np.testing.assert_array_equal(scores[found], np.sort(scores)[::-1][:count])


@given(scores=st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 2.0]), min_size=1, max_size=60), count=st.integers(1, 60))
def test_the_lower_index_wins_a_tie(scores: list[float], count: int) -> None:
    found = top(np.array([scores], np.float32), NONE, count)
    assert found.tolist() == sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]


@given(scores=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30), shift=st.sampled_from([0, -1e4, 1e4]))
def test_log_sum_exp(scores: list[float], shift: float) -> None:
    found = log_sum_exp(np.array([scores, [0.0] * len(scores)], np.float32) + np.float32(shift))
    expected = [shift + np.log(np.exp(np.array(row)).sum()) for row in (scores, [0.0] * len(scores))]
    assert found.dtype == np.float32
    assert found == pytest.approx(expected, rel=1e-6, abs=2e-3 if shift else 1e-5)
