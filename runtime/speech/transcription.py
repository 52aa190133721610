"""A transcription in progress: a recording of any length, window by window, in constant memory."""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from heedful.runtime.engine.lanes import Lanes, Place
from heedful.runtime.errors import InputError
from heedful.runtime.speech.clock import Clock
from heedful.runtime.speech.model import SpeechModel
from heedful.runtime.speech.options import TranscribeOptions
from heedful.runtime.speech.results import Segment, Transcript
from heedful.runtime.speech.segments import build_segment, deal_words
from heedful.runtime.speech.tape import Tape
from heedful.runtime.speech.timestamps import Span, split_segments
from heedful.runtime.speech.vad import SpeechWindow, speech_windows
from heedful.runtime.speech.windows import Decoded, Window, WindowDecoder
from heedful.runtime.speech.words import TimedWord, time_words
from heedful.runtime.workers import workers

log = logging.getLogger("heedful")

# less than this of audio after the last window holds no word
_SHORTEST = 0.1
# seconds of speech that tell its language
_TELLING = 10
# text that was not accepted up to this temperature is not trusted as a prompt for what follows
_TRUSTED_TEMPERATURE = 0.5


@dataclass(slots=True)
class _Stretch:
    """A stretch of a recording, its speech from sample `start` on, transcribed window after window.

    Times are its own until its `clock` tells those of the recording. `seek` is where in it the next window begins, a
    sample; `previous` the tokens so far; `speech_end` where its last word ended, in seconds.
    """

    tape: Tape
    start: int
    clock: Clock
    previous: list[int]
    seek: int = 0
    speech_end: float = 0.0
    done: bool = False


class Transcription:
    """A transcription in progress: iterate over it for its segments, which come as soon as they are ready.

    That can be done once, since the recording is read as it goes: InputError the second time. `admitted` is around all
    that is done.

    `language` and `language_probability` are known with the first segment; `duration`, in seconds, is what has been
    heard so far; `first_token` the time, by time.perf_counter, when the first token of all came.
    """

    def __init__(
        self,
        model: SpeechModel,
        lanes: Lanes[SpeechModel],
        admitted: Callable[[], AbstractContextManager[None]],
        options: TranscribeOptions,
        chunks: Iterator[NDArray[np.float32]],
    ) -> None:
        model.tokens.check_language(options.language, options.task)
        if options.batch > lanes.rows:
            raise InputError(
                f"batch {options.batch} is more than the {lanes.rows} rows that the model was loaded with: "
                f"load it with rows={options.batch}"
            )
        self.model = model
        self.lanes = lanes
        self.admitted = admitted
        self.options = options
        self.language = options.language or ("" if model.tokens.multilingual else "en")
        self.language_probability = 1.0 if self.language else 0.0
        self._samples = 0
        self._chunks = self._counted(chunks)
        self._windows = WindowDecoder(model, options)
        self._hotwords = model.tokens.encode(options.hotwords) if options.hotwords else []
        self._opening = model.tokens.encode(options.initial_prompt) if options.initial_prompt else []
        self.first_token: float | None = None
        self._begun = False

    @property
    def duration(self) -> float:
        return self._samples / self.model.rate

    def _counted(self, chunks: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        for chunk in chunks:
            self._samples += len(chunk)
            yield chunk

    def __iter__(self) -> Iterator[Segment]:
        if self._begun:
            raise InputError("a transcription can be iterated over once: keep its iterator to go on, or begin another")
        self._begun = True
        with self.admitted():
            segments = self._one_after_another() if self.options.batch == 1 else self._side_by_side()
            for number, segment in enumerate(segments):
                yield replace(segment, id=number)

    def _one_after_another(self) -> Iterator[Segment]:
        for stretch in self._stretches():
            yield from self._segments(stretch)

    def _side_by_side(self) -> Iterator[Segment]:
        """The segments of all stretches in order, `batch` stretches being transcribed at a time."""
        with workers(self.options.batch, "heedful-stretch") as pool:
            ahead: deque[Future[list[Segment]]] = deque()
            for stretch in self._stretches():
                if not self.language:
                    # the others need to know the language that this one is found to be in
                    yield from self._segments(stretch)
                    continue
                ahead.append(pool.submit(lambda mine: list(self._segments(mine)), stretch))
                if len(ahead) > 2 * self.options.batch:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()

    def _stretches(self) -> Iterator[_Stretch]:
        """The whole recording as one stretch, or each window of speech that the detector finds as one."""
        vad = self.options.vad_options
        if vad is None:
            yield _Stretch(Tape(self._chunks), 0, Clock([(0.0, math.inf)]), list(self._opening))
            return
        for window in self._with_language(speech_windows(self._chunks, vad, self.model.samples / self.model.rate)):
            clock = Clock([(start / self.model.rate, end / self.model.rate) for start, end in window.spans])
            yield _Stretch(Tape(iter([window.samples])), window.start, clock, list(self._opening))

    def _with_language(self, windows: Iterator[SpeechWindow]) -> Iterator[SpeechWindow]:
        """The same windows. A first one that is too short to tell the language by is heard with those that follow."""
        opening: list[SpeechWindow] = []
        missing = 0 if self.language else min(_TELLING * self.model.rate, self.model.samples)
        while missing > 0 and (window := next(windows, None)):
            opening.append(window)
            missing -= len(window.samples)
        if len(opening) > 1:
            speech = np.concatenate([window.samples for window in opening])
            with self.lanes.place(company=self.options.batch) as place:
                self._encode(place, speech[: self.model.samples])
                self._detect(place)
        return chain(opening, windows)

    def _segments(self, stretch: _Stretch) -> Iterator[Segment]:
        """Window after window."""
        while not stretch.done:
            waveform = stretch.tape.read(stretch.seek, self.model.samples)
            if len(waveform) < (_SHORTEST * self.model.rate if stretch.seek else 1):
                return
            # a row is held for one window only, so that a caller who takes its time over the segments holds up nobody
            with self.lanes.place(company=self.options.batch) as place:
                self._encode(place, waveform)
                with self.lanes.settled(place) as settled:
                    segments = self._transcribe(stretch, settled, len(waveform))
            yield from map(stretch.clock.place, segments)

    def _encode(self, place: Place[SpeechModel], waveform: NDArray[np.float32]) -> None:
        """Have the row of `place` attend to a window, `waveform` (samples,)."""
        decoder = place.batcher.decoder
        place.batcher.call(lambda: place.model.encode(decoder, {place.row: waveform}))

    def _transcribe(self, stretch: _Stretch, place: Place[SpeechModel], samples: int) -> list[Segment]:
        """The segments of one window of so many samples, which the row of `place` attends to."""
        if not self.language:
            self._detect(place)
        header = self.model.tokens.header(self.language, self.options)
        window = self._window(stretch, place.row, header)
        decoded = self._windows.decode(window, place.batcher.generate)
        if self.first_token is None:
            self.first_token = decoded.first_token
        return self._take(stretch, place, samples, window, decoded)

    def _detect(self, place: Place[SpeechModel]) -> None:
        job = self.model.language_job(place.row)
        place.batcher.generate([job])
        odds = self.model.language_odds(job)
        self.language = max(odds, key=odds.__getitem__)
        self.language_probability = odds[self.language]
        log.info("language: %s (probability %.2f)", self.language, self.language_probability)

    def _window(self, stretch: _Stretch, row: int, header: Sequence[int]) -> Window:
        prompt = self.model.tokens.prompt(header, stretch.previous, self._hotwords)
        return Window(row, stretch.start + stretch.seek, prompt, len(prompt) - len(header))

    def _take(
        self, stretch: _Stretch, place: Place[SpeechModel], samples: int, window: Window, decoded: Decoded
    ) -> list[Segment]:
        """The segments of a decoded window of `samples` samples; its stretch moves on to the next."""
        duration = samples / self.model.rate
        if self._windows.is_silence(decoded):
            stretch.seek += samples
            return []
        first = self.model.tokens.special.first_timestamp
        spans, following = split_segments(decoded.hypothesis.tokens, first, self.model.frame, duration)
        texts = [self.model.tokens.text(span.tokens) for span in spans]
        kept = [(span, text) for span, text in zip(spans, texts, strict=True) if text.strip() and span.end > span.start]
        words = self._words(stretch, place, [span for span, _ in kept], duration)
        offset = stretch.seek / self.model.rate
        floor = 0.0
        segments = []
        for (span, text), timed in zip(kept, words, strict=True):
            segment = build_segment(span, text, timed, offset, (floor, min(following, duration)), decoded)
            floor = segment.end - offset
            segments.append(segment)
        advance = round(following * self.model.rate)
        stretch.seek += advance if 0 < advance < samples else samples
        # what was cut off at the end of the window is heard again: it has not been said yet
        stretch.previous += (token for span, _ in kept for token in span.tokens)
        if not self.options.condition_on_previous_text or decoded.last_temperature > _TRUSTED_TEMPERATURE:
            stretch.previous = []
        stretch.done = stretch.tape.ended and stretch.tape.heard - stretch.seek < _SHORTEST * self.model.rate
        return segments

    def _words(
        self, stretch: _Stretch, place: Place[SpeechModel], spans: Sequence[Span], duration: float
    ) -> list[list[TimedWord] | None]:
        """The timed words of each span, seconds from the start of the window; None where they were not asked for."""
        if not self.options.words:
            return [None] * len(spans)
        tokens = self.model.tokens
        texts = [[token for token in span.tokens if token < tokens.special.end] for span in spans]
        flat = [token for text in texts for token in text]
        if not flat:
            return [[] for _ in spans]
        header = tokens.header(self.language, replace(self.options, timestamps=False))
        batcher = place.batcher
        weights, probabilities = batcher.call(lambda: place.model.align(batcher.decoder, place.row, header, flat))
        frames = max(1, min(self.model.shape.frames, round(duration / self.model.frame)))
        spoken = "en" if self.options.task == "translate" else self.language
        timed = time_words(tokens.words(flat, spoken), weights, probabilities, frames, self.model.frame)
        offset = stretch.seek / self.model.rate
        dealt = deal_words(timed, spans, [len(text) for text in texts], stretch.speech_end - offset)
        stretch.speech_end = max((words[-1].end + offset for words in dealt if words), default=stretch.speech_end)
        return [*dealt]


def collect(transcription: Transcription, each: Callable[[Segment], None] = lambda segment: None) -> Transcript:
    """Run a transcription to its end, calling `each` with every segment as it comes."""
    segments = []
    for segment in transcription:
        each(segment)
        segments.append(segment)
    return Transcript(
        text="".join(segment.text for segment in segments).strip(),
        task=transcription.options.task,
        language=transcription.language,
        language_probability=transcription.language_probability,
        duration=round(transcription.duration, 3),
        segments=tuple(segments),
    )
