"""Segments of the recording from spans of a window, with their words."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from heedful.runtime.speech.results import Segment, Word
from heedful.runtime.speech.timestamps import Span
from heedful.runtime.speech.windows import Decoded
from heedful.runtime.speech.words import TimedWord, after_pause, typical


def deal_words(
    words: Sequence[TimedWord], spans: Sequence[Span], counts: Sequence[int], speech_end: float
) -> list[list[TimedWord]]:
    """`words` dealt out to the spans that their tokens lie in, of which span i has `counts[i]`.

    `speech_end` is where the last word before them ended, in seconds from the start of their window.
    """
    longest = 2 * typical(words)
    dealt: list[list[TimedWord]] = []
    waiting = deque(words)
    taken = 0
    for span, count in zip(spans, counts, strict=True):
        mine: list[TimedWord] = []
        while waiting and taken < count:
            mine.append(waiting.popleft())
            taken += mine[-1].tokens
        taken -= count
        if mine:
            mine = after_pause(mine, mine[0].end - speech_end, longest)
            mine = _fitted(mine, span, longest / 2)
            speech_end = mine[-1].end
        dealt.append(mine)
    return dealt


def _fitted(words: list[TimedWord], span: Span, usual: float) -> list[TimedWord]:
    """`words`, of which the first and the last reach out of `span` by half a second at most."""
    words = list(words)
    first, last = words[0], words[-1]
    if first.start < span.start - 0.5 and span.start < first.end:
        words[0] = replace(first, start=max(0.0, min(first.end - usual, span.start)))
    if last.end > span.end + 0.5 and span.end > last.start:
        words[-1] = replace(words[-1], end=max(words[-1].start + usual, span.end))
    return words


def build_segment(
    span: Span, text: str, words: list[TimedWord] | None, offset: float, limits: tuple[float, float], decoded: Decoded
) -> Segment:
    """The segment of `span` in a window that begins at second `offset`, kept within `limits`, seconds of the window.

    With words, it begins with the first and ends with the last of them.
    """
    timed: tuple[Word, ...] | None = None
    start, end = (min(max(seconds, limits[0]), limits[1]) for seconds in (span.start, span.end))
    if words is not None:
        timed = _in_recording(words, offset, limits)
        if timed:
            start, end = timed[0].start - offset, timed[-1].end - offset
    return Segment(
        id=0,
        seek=round(offset, 3),
        start=round(offset + min(start, end), 3),
        end=round(offset + end, 3),
        text=text,
        tokens=span.tokens,
        temperature=decoded.temperature,
        avg_logprob=decoded.avg_logprob,
        compression_ratio=decoded.compression_ratio,
        no_speech_prob=decoded.no_speech_prob,
        words=timed,
    )


def _in_recording(words: Sequence[TimedWord], offset: float, limits: tuple[float, float]) -> tuple[Word, ...]:
    """Words in seconds of the recording, in order and without overlap."""
    placed: list[Word] = []
    before, latest = limits
    for word in words:
        start = min(max(word.start, before), latest)
        before = min(max(word.end, start), latest)
        placed.append(Word(round(offset + start, 3), round(offset + before, 3), word.text, word.probability))
    return tuple(placed)
