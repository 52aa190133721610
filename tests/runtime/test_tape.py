"""The tape, beside slices of the whole recording."""

import tracemalloc
from collections.abc import Iterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from heedful.runtime.speech.tape import Tape

Samples = NDArray[np.float32]

SIZES = st.lists(st.integers(0, 12), max_size=12)
# how far each read begins after the one before, and how long it is
READS = st.lists(st.tuples(st.integers(0, 15), st.integers(0, 20)), max_size=10)


class Stream:
    """Samples 0, 1, 2 ... in chunks of `sizes`; `given` of them so far."""

    def __init__(self, sizes: list[int]) -> None:
        self.samples = np.arange(sum(sizes), dtype=np.float32)
        self.sizes = sizes
        self.given = 0

    def __iter__(self) -> Iterator[Samples]:
        for size in self.sizes:
            self.given += size
            yield self.samples[self.given - size : self.given]


@given(sizes=SIZES, reads=READS)
def test_reads_do_not_depend_on_the_chunks(sizes: list[int], reads: list[tuple[int, int]]) -> None:
    stream = Stream(sizes)
    tape = Tape(iter(stream))
    start = 0
    for step, count in reads:
        start += step
        np.testing.assert_array_equal(tape.read(start, count), stream.samples[start : start + count])
        assert tape.heard == stream.given


@given(sizes=SIZES, reads=READS)
def test_nothing_is_fetched_before_it_is_needed(sizes: list[int], reads: list[tuple[int, int]]) -> None:
    stream = Stream(sizes)
    tape = Tape(iter(stream))
    start = needed = 0
    for step, count in reads:
        start += step
        tape.read(start, count)
        needed = max(needed, start + count)
        assert stream.given < needed + max(sizes, default=0) or stream.given == 0
        assert tape.ended <= (stream.given == len(stream.samples))


def test_a_stream_is_known_to_have_ended_once_a_read_falls_short() -> None:
    tape = Tape(iter([np.ones(3, np.float32), np.ones(2, np.float32)]))
    assert (len(tape.read(0, 5)), tape.ended) == (5, False)
    assert (len(tape.read(0, 6)), tape.ended) == (5, True)
    assert len(tape.read(5, 1)) == 0


def test_memory_stays_bounded_over_ten_minutes() -> None:
    """Windows of 30 s that overlap by half, of chunks of a second."""
    rate, window = 16_000, 480_000
    tape = Tape(np.zeros(rate, np.float32) for _ in range(600))
    tracemalloc.start()
    try:
        for start in range(0, 600 * rate, window // 2):
            tape.read(start, window)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert tape.heard == 600 * rate
    # all of it is 20 windows; one is put together from the one before and the chunks that wait
    assert peak < 4 * window * 4
