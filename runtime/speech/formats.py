"""Transcripts as text: plain, subtitles (SRT, WebVTT), TSV and JSON, written as the segments arrive."""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from heedful.runtime.errors import InputError
from heedful.runtime.speech.results import Segment, Transcript, Word


class Writer(Protocol):
    """Turns one transcript into text: what `begin`, `segment` and `finish` return, joined in that order."""

    def begin(self) -> str:
        """What stands before the first segment."""

    def segment(self, segment: Segment) -> str:
        """The text of the next segment; empty if it has none or the format needs the whole transcript first."""

    def finish(self, transcript: Transcript) -> str:
        """What stands after the last segment of `transcript`."""


class LineWriter:
    """A format in which every segment that has text stands for itself.

    `entry` gets the number of the segment, counted from 1, its start and end in milliseconds and its text, one line.
    """

    def __init__(self, header: str, entry: Callable[[int, int, int, str], str]) -> None:
        self._header = header
        self._entry = entry
        self._written = 0

    def begin(self) -> str:
        return self._header

    def segment(self, segment: Segment) -> str:
        text = _one_line(segment.text)
        if not text:
            return ""
        self._written += 1
        return self._entry(self._written, _milliseconds(segment.start), _milliseconds(segment.end), text)

    def finish(self, transcript: Transcript) -> str:
        return ""


class JsonWriter:
    """The fields of OpenAI's `verbose_json`: one object, written when the transcript is complete.

    `seek` counts frames of 10 ms as there; a number that is NaN or infinite becomes null; `words` stands in each
    segment and once more for the whole recording if the transcript has word times.
    """

    def begin(self) -> str:
        return ""

    def segment(self, segment: Segment) -> str:
        return ""

    def finish(self, transcript: Transcript) -> str:
        fields: dict[str, Any] = {
            "task": transcript.task,
            "language": transcript.language,
            "duration": _finite(transcript.duration),
            "text": transcript.text,
            "segments": [_segment_fields(segment) for segment in transcript.segments],
        }
        timed = [segment.words for segment in transcript.segments if segment.words is not None]
        if timed:
            fields["words"] = [_word_fields(word) for words in timed for word in words]
        return json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n"


def writer(format: str) -> Writer:
    """A new writer of `format`; InputError, listing `FORMATS`, if there is none."""
    if format not in WRITERS:
        raise InputError(f"unknown format {format!r}; choose one of {', '.join(FORMATS)}")
    return WRITERS[format]()


def render(transcript: Transcript, format: str) -> str:
    """The whole of `transcript` in `format`, one of `FORMATS`; InputError for another."""
    chosen = writer(format)
    return chosen.begin() + "".join(map(chosen.segment, transcript.segments)) + chosen.finish(transcript)


def _txt(number: int, start: int, end: int, text: str) -> str:
    return f"{text}\n"


def _srt(number: int, start: int, end: int, text: str) -> str:
    # SRT cannot escape its arrow, and a player would take the line for a new time.
    return f"{number}\n{_cue_times(start, end, ',')}\n{re.sub('-{2,}>', '->', text)}\n\n"


def _vtt(number: int, start: int, end: int, text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"{_cue_times(start, end, '.')}\n{escaped}\n\n"


def _tsv(number: int, start: int, end: int, text: str) -> str:
    return f"{start}\t{end}\t{text}\n"


WRITERS: Mapping[str, Callable[[], Writer]] = {
    "txt": lambda: LineWriter("", _txt),
    "srt": lambda: LineWriter("", _srt),
    "vtt": lambda: LineWriter("WEBVTT\n\n", _vtt),
    "tsv": lambda: LineWriter("start\tend\ttext\n", _tsv),
    "json": JsonWriter,
}
FORMATS = tuple(WRITERS)


def _cue_times(start: int, end: int, decimal: str) -> str:
    # A cue that ends when it begins is not valid, and players drop it.
    return f"{_clock(start, decimal)} --> {_clock(max(end, start + 1), decimal)}"


def _clock(milliseconds: int, decimal: str) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{decimal}{milliseconds:03}"


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _one_line(text: str) -> str:
    """`text` stripped, with a space for every tab and line break."""
    return " ".join(text.replace("\t", " ").splitlines()).strip()


def _segment_fields(segment: Segment) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "id": segment.id,
        "seek": round(segment.seek * 100),
        "start": _finite(segment.start),
        "end": _finite(segment.end),
        "text": segment.text,
        "tokens": segment.tokens,
        "temperature": _finite(segment.temperature),
        "avg_logprob": _finite(segment.avg_logprob),
        "compression_ratio": _finite(segment.compression_ratio),
        "no_speech_prob": _finite(segment.no_speech_prob),
    }
    if segment.words is not None:
        fields["words"] = [_word_fields(word) for word in segment.words]
    return fields


def _word_fields(word: Word) -> dict[str, Any]:
    return {
        "word": word.text,
        "start": _finite(word.start),
        "end": _finite(word.end),
        "probability": _finite(word.probability),
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
