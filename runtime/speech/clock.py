"""From the time of a stretch, which leaves silences out, to the time of its recording."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from heedful.runtime.speech.results import Segment, Word

# seconds by which a sum may miss what it means
_TINY = 1e-6


class Clock:
    """Knows the spans of a recording, (start, end) in seconds, that lie one behind the other in a stretch."""

    def __init__(self, spans: Sequence[tuple[float, float]]) -> None:
        self.spans = list(spans)
        self.begins = [0.0, *accumulate(end - start for start, end in spans)][: len(spans)]

    def place(self, segment: Segment) -> Segment:
        """`segment`, in seconds of the stretch, in seconds of the recording."""
        words = None if segment.words is None else tuple(map(self._word, segment.words))
        if words:
            start, end = words[0].start, words[-1].end
        else:
            start, _ = self._within(segment.start, segment.end, at=segment.start)
            # what ends at a join ends before it
            _, end = self._within(segment.start, segment.end, at=segment.end - 2 * _TINY)
        seek, _ = self._within(segment.seek, segment.seek, at=segment.seek)
        return replace(segment, seek=round(seek, 3), start=round(start, 3), end=round(max(start, end), 3), words=words)

    def _word(self, word: Word) -> Word:
        # a word is said in one go: it lies where its middle does
        start, end = self._within(word.start, word.end, at=(word.start + word.end) / 2)
        return replace(word, start=round(start, 3), end=round(end, 3))

    def _within(self, start: float, end: float, *, at: float) -> tuple[float, float]:
        """From `start` to `end` as far as it lies in the span that `at` is in."""
        i = max(bisect_right(self.begins, at + _TINY) - 1, 0)
        first, last = self.spans[i]
        shift = first - self.begins[i]
        return min(max(start + shift, first), last), min(max(end + shift, first), last)
