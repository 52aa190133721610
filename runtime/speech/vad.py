"""Voice activity: where a recording holds speech, cut into windows that a recogniser can take whole."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heedful.runtime.errors import InputError
from heedful.runtime.options import check_number
from heedful.runtime.speech.audio import SAMPLE_RATE
from heedful.runtime.speech.detector import FRAME, detector

# Speech goes on until its probability falls this far below the threshold that began it.
_HYSTERESIS = 0.15


@dataclass(frozen=True, slots=True)
class VadOptions:
    """How speech is told from silence; lengths in seconds, counted in frames of 32 ms.

    A span of speech begins where its probability reaches `threshold` and ends where it then stays below
    `threshold - 0.15` for `min_silence`, or for twice `pad` if that is longer, so that padding never overlaps. Spans
    shorter than `min_speech` are dropped, the others widened by `pad` on both sides. A silence longer than `max_gap`
    always ends a window. Raises InputError for a value that makes no sense.
    """

    threshold: float = 0.5
    min_speech: float = 0.25
    min_silence: float = 0.5
    pad: float = 0.2
    max_gap: float = 5.0

    def __post_init__(self) -> None:
        for field in fields(self):
            check_number(field.name, getattr(self, field.name))
        if not 0 < self.threshold < 1:
            raise InputError(f"threshold {self.threshold!r}: choose a probability between 0 and 1")
        for field in fields(self)[1:]:
            seconds = getattr(self, field.name)
            if seconds < 0:
                raise InputError(f"{field.name} {seconds!r}: choose a number of seconds, 0 or more")


@dataclass(frozen=True, slots=True)
class SpeechWindow:
    """Speech of a recording: `samples` is (samples,) float32 at 16 kHz, made of the recording's `spans`, each from one
    sample up to another, one behind the other.
    """

    spans: tuple[tuple[int, int], ...]
    samples: NDArray[np.float32]

    @property
    def start(self) -> int:
        """Its first sample in the recording."""
        return self.spans[0][0]

    @property
    def end(self) -> int:
        """The sample after its last one."""
        return self.spans[-1][1]


def speech_windows(
    chunks: Iterable[NDArray[np.float32]], options: VadOptions, max_seconds: float = 30.0
) -> Iterator[SpeechWindow]:
    """Yield the speech of a recording as windows in order, none overlapping, none longer than `max_seconds`.

    `chunks` are (samples,) float32 at 16 kHz; where the recording is divided into them makes no difference. A window
    holds as many consecutive spans as fit, without the silences between them. A span too long for any window is cut
    before the frame of the window's last third that is least likely to be speech. Memory is constant.

    Raises InputError, at the call, if `max_seconds` is less than a second or than twice the padding.
    """
    if not max(1.0, 2 * options.pad) <= max_seconds < math.inf:
        raise InputError(f"max_seconds {max_seconds!r}: choose at least 1 second and twice pad ({options.pad!r})")
    return _windows(chunks, options, longest=math.floor(_in_frames(max_seconds)))


def _windows(chunks: Iterable[NDArray[np.float32]], options: VadOptions, longest: int) -> Iterator[SpeechWindow]:
    spans, tape = _Spans(options, longest), _Tape()
    # Padding is part of the silence between two spans, and no part of the gap between their ends.
    max_gap = math.floor(_in_frames(options.max_gap)) - 2 * spans.pad
    window: list[_Span] = []
    for span in _listen(chunks, spans, tape):
        upcoming = span.start if span else spans.earliest
        if window and (upcoming - window[-1].end > max_gap or (span and _length([*window, span]) > longest)):
            yield tape.window(window)
            window = []
        if span:
            window.append(span)
        tape.forget(before=window[0].start if window else spans.earliest)
    if window:
        yield tape.window(window)


def _length(spans: Iterable["_Span"]) -> int:
    return sum(span.end - span.start for span in spans)


def _listen(chunks: Iterable[NDArray[np.float32]], spans: "_Spans", tape: "_Tape") -> Iterator["_Span | None"]:
    """After every frame: the span that it completed, if any."""
    probability = detector()
    for frame in _frames(chunks):
        tape.frames.append(frame)
        yield spans.hear(probability(frame))
    yield spans.close()


class _Span(NamedTuple):
    """From frame `start` up to, not including, frame `end`."""

    start: int
    end: int


class _Spans:
    """Finds the padded spans of speech, told the probability of one frame after another; counts in frames."""

    def __init__(self, options: VadOptions, longest: int) -> None:
        self.onset_level = options.threshold
        self.release_level = max(options.threshold - _HYSTERESIS, 0.01)
        self.pad = math.ceil(_in_frames(options.pad))
        self.min_speech = _in_frames(options.min_speech)
        self.min_silence = max(_in_frames(options.min_silence), 2 * self.pad, 1)
        self.longest = longest
        self.heard = 0
        self.speaking = False
        self.open: list[float] = []  # probabilities of the span being heard, from its first frame of speech or its cut
        self.onset = self.start = self.end = 0  # of that span: first frame of speech, with padding, after the last

    @property
    def earliest(self) -> int:
        """No span to come begins before this frame."""
        return self.start if self.open else max(self.heard - self.pad, 0)

    def hear(self, probability: float) -> _Span | None:
        """Take the next frame; the span that is now complete, if any."""
        self.speaking = probability >= (self.release_level if self.speaking else self.onset_level)
        if self.speaking and not self.open:
            self.onset, self.start = self.heard, self.earliest
        self.heard += 1
        if self.speaking:
            self.end = self.heard
        if self.speaking or self.open:
            self.open.append(probability)
        if self.open and self.end - self.start > self.longest:
            return self._cut()
        return self.close() if self.heard - self.end >= self.min_silence else None

    def close(self) -> _Span | None:
        """End the span being heard; None if there is none or it was too short."""
        enough = bool(self.open) and self.end - self.onset >= self.min_speech
        self.open = []
        # Rather less padding than a cut through speech.
        return _Span(self.start, min(self.end + self.pad, self.start + self.longest, self.heard)) if enough else None

    def _cut(self) -> _Span:
        first = self.heard - len(self.open)
        last_third = range(self.start + math.ceil(self.longest * 2 / 3), self.start + self.longest + 1)
        cut = min(last_third, key=lambda frame: (self.open[frame - first], -frame))
        span = _Span(self.start, cut)
        self.start, self.open = cut, self.open[cut - first :]
        return span


class _Tape:
    """The frames that a window may still need."""

    def __init__(self) -> None:
        self.frames: deque[NDArray[np.float32]] = deque()
        self.first = 0

    def forget(self, before: int) -> None:
        while self.first < before:
            self.frames.popleft()
            self.first += 1

    def window(self, spans: list[_Span]) -> SpeechWindow:
        parts = [
            np.concatenate(list(islice(self.frames, span.start - self.first, span.end - self.first))) for span in spans
        ]
        starts = [span.start * FRAME for span in spans]
        bounds = tuple((start, start + len(part)) for start, part in zip(starts, parts, strict=True))
        return SpeechWindow(bounds, np.concatenate(parts))


def _frames(chunks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """The same samples in pieces of `FRAME`, the last one shorter."""
    rest = np.empty(0, np.float32)
    for chunk in chunks:
        rest = np.concatenate([rest, chunk])
        whole = len(rest) - len(rest) % FRAME
        yield from rest[:whole].reshape(-1, FRAME)
        rest = rest[whole:]
    if len(rest):
        yield rest


def _in_frames(seconds: float) -> float:
    return seconds * SAMPLE_RATE / FRAME
