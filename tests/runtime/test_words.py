"""Word times: costs and paths beside plain loops, times of attention made to look where it should."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from heedful.models.filterbank import mel_filterbank
from heedful.runtime.speech.words import TimedWord, after_pause, alignment_cost, time_words, typical, warp

FRAME = 0.02
HEADS = 3

Costs = NDArray[np.float32]

# whole numbers: their sums are exact
COSTS = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(-9, 9).map(float)
)
SEEDS = st.integers(0, 2**32 - 1)


def cheapest(cost: Costs) -> float:
    """Cost of the cheapest path from corner to corner: one cell down, to the right, or both."""
    rows, frames = cost.shape
    total: dict[tuple[int, int], float] = {}
    for i in range(rows):
        for j in range(frames):
            before = [total[cell] for cell in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if cell in total]
            total[i, j] = float(cost[i, j]) + min(before, default=0.0)
    return total[rows - 1, frames - 1]


def cost_from(starts: Sequence[int], cost: Costs) -> float:
    """Cost of the cheapest path on which row i begins at frame starts[i], corner to corner."""
    total = float(cost[-1, starts[-1] :].sum())
    for row, (start, following) in zip(cost, pairwise(starts), strict=False):
        reaches = float(row[start : following + 1].sum())
        # the last of these cells is skipped by a move down and to the right
        total += reaches if start == following else min(reaches, float(row[start:following].sum()))
    return total


@given(cost=COSTS)
def test_the_path_is_the_cheapest(cost: Costs) -> None:
    starts = warp(cost).tolist()
    assert starts[0] == 0
    assert starts == sorted(starts)
    assert len(starts) == len(cost)
    assert starts[-1] < cost.shape[1]
    assert cost_from(starts, cost) == cheapest(cost)


def test_a_path_through_a_valley() -> None:
    valley = [(0, 0), (0, 1), (1, 2), (2, 2), (3, 3), (3, 4), (3, 5)]
    cost = np.ones((4, 6), np.float32)
    cost[tuple(zip(*valley, strict=True))] = 0
    assert warp(cost).tolist() == [0, 2, 2, 3]


def plain_cost(weights: NDArray[np.float64], frames: int) -> NDArray[np.float64]:
    """What `alignment_cost` says, one number at a time."""
    heads, tokens, _ = weights.shape
    cost = np.zeros((tokens, frames))
    for head in weights[:, :, :frames]:
        shares = np.array([row / sum(row) for row in head])
        normal = (shares - shares.mean(0)) / np.sqrt(np.maximum(((shares - shares.mean(0)) ** 2).mean(0), 1e-20))
        for i in range(tokens):
            for j in range(frames):
                mirrored = [frames - 1 - abs(frames - 1 - abs(j + step)) for step in range(-3, 4)]
                near = sorted(normal[i, mirrored]) if frames > 3 else [normal[i, j]]
                cost[i, j] -= near[len(near) // 2] / heads
    return cost


@given(seed=SEEDS, tokens=st.integers(3, 6), frames=st.integers(1, 20), padding=st.integers(0, 3))
def test_the_cost_is_smoothed_attention(seed: int, tokens: int, frames: int, padding: int) -> None:
    weights = np.random.default_rng(seed).uniform(0.1, 1, (HEADS, tokens, frames + padding))
    expected = plain_cost(weights, frames)
    weights[:, :, frames:] = np.nan  # what lies in the padding of the window must not matter
    np.testing.assert_allclose(alignment_cost(weights.astype(np.float32), frames), expected, atol=1e-3)


def test_tokens_that_look_nowhere_cost_nothing_strange() -> None:
    cost = alignment_cost(np.zeros((HEADS, 4, 10), np.float32), 10)
    np.testing.assert_array_equal(cost, np.zeros((4, 10)))


def looking(lengths: Sequence[int], padding: int = 0) -> NDArray[np.float32]:
    """Attention of tokens that look, one after the other, at as many frames as `lengths` says."""
    edges = [0, *accumulate(lengths)]
    weights = np.full((HEADS, len(lengths), edges[-1] + padding), 1e-3, np.float32)
    for i, (start, end) in enumerate(pairwise(edges)):
        weights[:, i, start:end] = 1
    weights[:, :, edges[-1] :] = 5
    return weights


def timed(texts: Sequence[str], lengths: Sequence[int] | None = None) -> list[TimedWord]:
    """Words of one token each that look at `lengths` frames, 10 unless told, and then the end token at 10."""
    lengths = lengths or [10] * len(texts)
    words = [(text, [i]) for i, text in enumerate(texts)]
    probabilities = np.linspace(0.1, 0.9, len(texts), dtype=np.float32)
    return time_words(words, looking([*lengths, 10]), probabilities, sum(lengths) + 10, FRAME)


# the frames that each token of a word looks at: more than the width of the median, which keeps their edges
LENGTHS = st.lists(st.lists(st.integers(8, 20), min_size=1, max_size=3), min_size=1, max_size=6)


@given(lengths=LENGTHS, silence=st.integers(8, 20), padding=st.integers(0, 30), seed=SEEDS)
def test_words_are_where_their_tokens_look(lengths: list[list[int]], silence: int, padding: int, seed: int) -> None:
    words = [(f" {i}", [0] * len(frames)) for i, frames in enumerate(lengths)]
    flat = [count for frames in lengths for count in frames]
    odds = np.random.default_rng(seed).uniform(size=len(flat)).astype(np.float32)
    found = time_words(words, looking([*flat, silence], padding), odds, sum(flat) + silence, FRAME)
    edges = [0, *accumulate(sum(frames) for frames in lengths)]
    bounds = [0, *accumulate(len(frames) for frames in lengths)]
    assert [(word.text, word.tokens) for word in found] == [(text, len(tokens)) for text, tokens in words]
    assert [word.start for word in found] == pytest.approx([FRAME * edge for edge in edges[:-1]])
    assert [word.end for word in found] == pytest.approx([FRAME * edge for edge in edges[1:]])
    means = [odds[start:end].mean() for start, end in pairwise(bounds)]
    assert [word.probability for word in found] == pytest.approx(means)


def test_no_words_take_no_time() -> None:
    assert time_words([], np.zeros((HEADS, 1, 10), np.float32), np.zeros(0, np.float32), 10, FRAME) == []


@given(seed=SEEDS, count=st.integers(1, 6), frames=st.integers(1, 30))
def test_times_are_in_order_whatever_the_attention(seed: int, count: int, frames: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.exponential(size=(HEADS, count + 1, 40)).astype(np.float32)
    words = [(text, [0]) for text in rng.choice([" a", "b", ".", " -", ")"], count)]
    found = time_words(words, weights, np.ones(count, np.float32), frames, FRAME)
    times = [time for word in found for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] < frames * FRAME


JOINED = {
    "closing": ([" hi", ",", " there", "!"], [" hi,", " there!"]),
    "several closing": ([" hi", ".", '"', " there"], [' hi."', " there"]),
    "closing with a space": ([" hi", " !", " there"], [" hi", " !", " there"]),
    "opening": ([" (", "hi", ")", " there"], [" (hi)", " there"]),
    "opening with a space": ([" hi", " -", " there"], [" hi", " - there"]),
    "opening twice": ([" (", ' "', " hi"], [' ( " hi']),
    "opening and nothing after": ([" hi", " ("], [" hi", " ("]),
    "opening and closing": ([" hi", " (", ")", " there"], [" hi", " ()", " there"]),
    "closing first": ([".", " hi"], [".", " hi"]),
    "full width": ([" 你好", "。", "世界", "！"], [" 你好。", "世界！"]),  # noqa: RUF001
    "inside a word": ([" it", "'", "s"], [" it'", "s"]),
}


@pytest.mark.parametrize(("texts", "expected"), JOINED.values(), ids=JOINED)
def test_punctuation_is_joined_to_words(texts: list[str], expected: list[str]) -> None:
    assert [word.text for word in timed(texts)] == expected


# those of the reference implementation
OPENING, CLOSING = "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001

MARKED = st.lists(st.sampled_from([" a", "b", " (", ' "', '"', " -", "-", ".", " .", ")", ","]), min_size=1, max_size=7)


@given(texts=MARKED)
def test_joining_punctuation_loses_nothing(texts: list[str]) -> None:
    words = timed(texts)
    assert "".join(word.text for word in words) == "".join(texts)
    assert sum(word.tokens for word in words) == len(texts)


@pytest.fixture(scope="module")
def transformers_loads() -> None:
    """transformers imports torchaudio, which loads beside a CPU build of torch only after this."""
    mel_filterbank(201, 80, 16_000)


@pytest.mark.usefixtures("transformers_loads")
@given(texts=MARKED)
def test_punctuation_is_joined_as_in_transformers(texts: list[str]) -> None:
    from transformers.models.whisper.tokenization_whisper import _merge_punctuations

    expected, tokens, indices = list(texts), [[0] for _ in texts], [[0] for _ in texts]
    _merge_punctuations(expected, tokens, indices, OPENING, CLOSING)  # type: ignore[no-untyped-call]
    assert [(word.text, word.tokens) for word in timed(texts)] == [
        (text, len(ids)) for text, ids in zip(expected, tokens, strict=True)
    ]


def test_a_word_keeps_its_own_times_beside_punctuation() -> None:
    (word,) = timed([' "', " hi", "."], [8, 12, 9])
    assert (word.start, word.end) == pytest.approx((0.16, 0.4))
    assert word.tokens == 3
    assert word.probability == pytest.approx(0.5)


def spans(words: Sequence[TimedWord]) -> list[object]:
    return [pytest.approx((word.start, word.end)) for word in words]


PAUSES = {
    # the median of what the texts take is 0.2 s
    "after a sentence": ([" a", ".", " b", " c"], [10, 10, 100, 10], [(0, 0.2), (2.0, 2.4), (2.4, 2.6)]),
    "at the end of one": ([" a", " b", " ?", " c"], [10, 10, 100, 10], [(0, 0.2), (0.2, 0.4), (0.4, 0.8), (2.4, 2.6)]),
    "within one": ([" a", ",", " b", " c"], [10, 10, 100, 10], [(0, 0.2), (0.4, 2.4), (2.4, 2.6)]),
    "not long enough": ([" a", ".", " b", " c"], [10, 10, 20, 10], [(0, 0.2), (0.4, 0.8), (0.8, 1.0)]),
    "first word": ([" a", ".", " b", " c"], [100, 10, 10, 10], [(0, 2.0), (2.2, 2.4), (2.4, 2.6)]),
    "long words": ([" a", ".", " b", " c"], [80, 80, 90, 80], [(0, 1.6), (3.6, 5.0), (5.0, 6.6)]),
}


@pytest.mark.parametrize(("texts", "lengths", "expected"), PAUSES.values(), ids=PAUSES)
def test_no_word_takes_the_pause_between_sentences(
    texts: list[str], lengths: list[int], expected: list[tuple[float, float]]
) -> None:
    assert spans(timed(texts, lengths)) == expected


def words(*times: tuple[float, float]) -> list[TimedWord]:
    return [TimedWord(f" {i}", 1, start, end, 0.5) for i, (start, end) in enumerate(times)]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([], 0.0),
        ([(1, 1)], 0.0),
        ([(0, 0.25), (0.25, 0.25), (0.25, 0.375)], 0.1875),
        ([(0, 0.25), (0.25, 0.5), (0.5, 4)], 0.25),
        ([(0, 3), (3, 6)], 0.7),
    ],
)
def test_a_typical_word(times: list[tuple[float, float]], expected: float) -> None:
    assert typical(words(*times)) == pytest.approx(expected)


AFTER = {
    "first word long": (3.0, [(1, 5), (5, 5.5)], [(4, 5), (5, 5.5)]),
    "both long": (4.0, [(0, 4), (4, 8)], [(6, 7), (7, 8)]),
    "second long": (3.0, [(2, 2.5), (2.5, 6)], [(4, 5), (5, 6)]),
    "second long, early": (2.5, [(0, 0.25), (0.25, 1.75)], [(0, 0.25), (0.25, 1.75)]),
    "none long": (9.0, [(1, 1.5), (1.5, 2)], [(1, 1.5), (1.5, 2)]),
    "no pause": (2.0, [(1, 5), (5, 9)], [(1, 5), (5, 9)]),
    "third long": (9.0, [(1, 1.5), (1.5, 2), (2, 9)], [(1, 1.5), (1.5, 2), (2, 9)]),
    "one word": (5.0, [(1, 5)], [(4, 5)]),
    "none": (9.0, [], []),
}


@pytest.mark.parametrize(("silence", "times", "expected"), AFTER.values(), ids=AFTER)
def test_the_first_words_do_not_take_the_pause_before(
    silence: float, times: list[tuple[float, float]], expected: list[tuple[float, float]]
) -> None:
    """A word is at most 1 s long there."""
    before = words(*times)
    found = after_pause(before, silence, 1.0)
    assert [(word.start, word.end) for word in found] == expected
    assert before == words(*times)


@given(
    steps=st.lists(st.floats(0, 5), min_size=4, max_size=8),
    silence=st.floats(-5, 20),
    longest=st.floats(0, 2) | st.just(0),
)
def test_after_a_pause_words_stay_in_order(steps: list[float], silence: float, longest: float) -> None:
    edges = list(accumulate(steps))
    before = words(*pairwise(edges))
    found = after_pause(before, silence, longest)
    times = [time for word in found for time in (word.start, word.end)]
    assert times == sorted(times)
    assert edges[0] <= times[0]
    assert found[2:] == before[2:]
    assert found[1].end == before[1].end
    changed = found != before
    assert changed <= (silence > 2 * longest > 0)
    assert not changed or found[0].end - found[0].start <= longest + 1e-9
