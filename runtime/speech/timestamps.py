"""Whisper's timestamp tokens: the rule they obey while decoding, and the segments they mark afterwards.

Source: the reference implementation of Radford et al. 2022, arXiv 2212.04356.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from heedful.runtime.engine.rules import Logits
from heedful.runtime.engine.search import log_sum_exp


class TimestampRule:
    """Timestamps come in pairs around text, never go back, open the window, and come whenever they are likelier, taken
    together, than any text token. The first is at most `latest_start`, in steps of 20 ms.
    """

    def __init__(self, end: int, no_timestamps: int, latest_start: int) -> None:
        self.end = end
        self.no_timestamps = no_timestamps
        self.first = no_timestamps + 1
        self.latest_start = latest_start

    def __call__(self, logits: Logits, generated: Sequence[int]) -> None:
        first = self.first
        logits[self.no_timestamps] = -np.inf
        if not generated:
            logits[:first] = -np.inf
            logits[first + self.latest_start + 1 :] = -np.inf
            return
        stamped = generated[-1] >= first
        paired = len(generated) < 2 or generated[-2] >= first
        if stamped and paired:
            logits[first:] = -np.inf
        elif stamped:
            logits[: self.end] = -np.inf
        latest = next((token for token in reversed(generated) if token >= first), None)
        if latest is not None:
            # a segment may end where it began only if it is being closed
            logits[first : latest if stamped and not paired else latest + 1] = -np.inf
        stamps, likeliest = logits[first:], logits[:first].max()
        # a sum is at most the largest as often as there are numbers: in the middle of a text that says enough
        bound = float(stamps.max()) + math.log(len(stamps))
        if bound > likeliest and log_sum_exp(stamps) > likeliest:
            logits[:first] = -np.inf


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
