"""Times of a stretch without silences, back in its recording: beside a table with a place for every sample."""

import math
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from heedful.runtime.speech.clock import Clock
from heedful.runtime.speech.results import Segment, Word

RATE = 100


def segment(start: float, end: float, words: tuple[Word, ...] | None = None, seek: float = 0.0) -> Segment:
    return Segment(0, seek, start, end, " a", (1,), 0.0, -0.1, 1.0, 0.0, words)


# a silence, then a span, in hundredths of a second
PARTS = st.lists(st.tuples(st.integers(0, 300), st.integers(2, 300)), min_size=1, max_size=6)


@given(parts=PARTS, data=st.data())
def test_words_lie_where_their_sound_was(parts: list[tuple[int, int]], data: st.DataObject) -> None:
    lengths = [length for part in parts for length in part]
    ends = list(accumulate(lengths))
    spans = [(ends[2 * i], ends[2 * i + 1]) for i in range(len(parts))]
    table = np.concatenate([np.arange(*span) for span in spans])  # of each sample of the stretch, where it was
    clock = Clock([(start / RATE, end / RATE) for start, end in spans])
    start = data.draw(st.integers(0, len(table) - 1))
    end = data.draw(st.integers(start + 1, len(table)))
    assume((start + end) / 2 not in list(accumulate(end - start for start, end in spans)))  # a toss-up
    middle = spans[next(i for i, span in enumerate(spans) if span[0] <= table[(start + end) // 2] < span[1])]
    (word,) = clock.place(segment(0, 1, (Word(start / RATE, end / RATE, " a", 1.0),))).words or ()
    assert word.start == pytest.approx(max(table[start], middle[0]) / RATE, abs=1e-3)
    assert word.end == pytest.approx(min(table[end - 1] + 1, middle[1]) / RATE, abs=1e-3)
    placed = clock.place(segment(start / RATE, end / RATE, seek=start / RATE))
    assert placed.start == placed.seek == pytest.approx(table[start] / RATE, abs=1e-3)
    assert placed.start <= placed.end <= spans[-1][1] / RATE


def test_a_whole_recording_keeps_its_times() -> None:
    words = (Word(3.2, 3.9, " a", 0.5), Word(4.0, 4.25, " b", 0.5))
    kept = segment(3.2, 4.25, words, seek=2.0)
    assert Clock([(0.0, math.inf)]).place(kept) == kept


def test_a_segment_with_words_reaches_from_the_first_to_the_last() -> None:
    words = (Word(0.5, 1.0, " a", 1.0), Word(2.5, 3.0, " b", 1.0))
    placed = Clock([(10.0, 12.0), (20.0, 25.0)]).place(segment(0.0, 3.5, words))
    assert (placed.start, placed.end) == (10.5, 21.0)
