"""Whisper's timestamp tokens: the rule they obey while decoding, and the segments they mark afterwards.

Source: the reference implementation of Radford et al. 2022, arXiv 2212.04356.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from heedful.runtime.engine.rules import Logits, Suppress, Tokens
from heedful.runtime.engine.search import log_sum_exp

# the first of the timestamps that may come, where none may
_NONE = 1 << 31


class TimestampRule:
    """Timestamps come in pairs around text, never go back, open the window, and come whenever they are likelier, taken
    together, than any text token. The first is at most `latest_start`, in steps of 20 ms.
    """

    def __init__(self, end: int, no_timestamps: int, latest_start: int) -> None:
        self.end = end
        self.no_timestamps = no_timestamps
        self.first = no_timestamps + 1
        self.latest_start = latest_start

    def __call__(self, logits: Logits, generated: Sequence[int]) -> Iterable[Tokens]:
        first, size = self.first, len(logits)
        if not generated:
            return [slice(0, first), slice(first + self.latest_start + 1, size)]
        text, stamp = self._earliest(generated, size)
        # all that may come, those that other rules rule out left in
        stamps, likeliest = logits[stamp:], logits[text : self.no_timestamps].max()
        # a sum is at most the largest as often as there are numbers: in the middle of a text that says enough
        bound = float(stamps.max()) + math.log(len(stamps)) if len(stamps) else -math.inf
        if bound > likeliest and log_sum_exp(stamps) > likeliest:
            text = self.no_timestamps
        return [slice(0, text), slice(self.no_timestamps, stamp)]

    def of(self, generated: Sequence[int]) -> tuple[int, int]:
        """Whether a segment is being closed, and the first of the timestamps that may come."""
        text, stamp = self._earliest(generated, _NONE)
        return int(text > 0), stamp

    def _earliest(self, generated: Sequence[int], size: int) -> tuple[int, int]:
        """The first of the text tokens and the first of the timestamps that may come, `size` if none may."""
        first = self.first
        stamped = generated[-1] >= first
        paired = len(generated) < 2 or generated[-2] >= first
        if stamped and paired:
            return 0, size
        latest = next((token for token in reversed(generated) if token >= first), first - 1)
        # a segment may end where it began only if it is being closed
        return (self.end, latest) if stamped else (0, latest + 1)


class NoTimestamps(Suppress):
    """Timestamps never come, nor the token that says so."""

    def __init__(self, no_timestamps: int, vocabulary: int) -> None:
        super().__init__(range(no_timestamps, vocabulary))

    def of(self, generated: Sequence[int]) -> tuple[int, int]:
        """No segment is being closed, and no timestamp may come."""
        return 0, _NONE


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of one segment and its time in seconds from the start of the window."""

    start: float
    end: float
    tokens: tuple[int, ...]


def split_segments(
    tokens: Sequence[int], first_timestamp: int, frame: float, duration: float
) -> tuple[list[Span], float]:
    """Segments of a window that lasts `duration` seconds, and the second at which the next window should begin.

    Two timestamps in a row end one segment and begin the next. Text after the last such pair was cut off by the end of
    the window, so the next window begins there, unless a single timestamp closes it.
    """

    def seconds(token: int) -> float:
        return round((token - first_timestamp) * frame, 2)

    stamped = [token >= first_timestamp for token in tokens]
    pairs = [i for i in range(1, len(tokens)) if stamped[i] and stamped[i - 1]]
    closed = stamped[-2:] == [False, True]
    if not pairs:
        stamps = [token for token in tokens if token >= first_timestamp]
        start = seconds(stamps[0]) if stamps and stamped[0] else 0.0
        end = seconds(stamps[-1]) if stamps and seconds(stamps[-1]) > start else duration
        return [Span(min(start, end), end, tuple(tokens))], duration
    spans = []
    begin = 0
    for cut in [*pairs, *([len(tokens)] if closed else [])]:
        part = tokens[begin:cut]
        spans.append(Span(seconds(part[0]), seconds(part[-1]), tuple(part)))
        begin = cut
    return spans, duration if closed else seconds(tokens[begin - 1])
