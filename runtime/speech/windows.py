"""Decoding of a window of speech at falling confidence in itself.

A window that fails the thresholds of repetition or probability is decoded again at the next temperature.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from heedful.runtime.engine.generate import Job
from heedful.runtime.engine.rules import Rule, Suppress
from heedful.runtime.engine.search import Beam, Hypothesis, Limits, Sample, Search
from heedful.runtime.speech.model import SpeechModel
from heedful.runtime.speech.options import TranscribeOptions
from heedful.runtime.speech.timestamps import NoTimestamps, TimestampRule


@dataclass(frozen=True, slots=True)
class Window:
    """Audio already encoded in `row`, the sample `start` that no other window of the recording has, and the `prompt`
    before its text, of which the start token is at `header`.
    """

    row: int
    start: int
    prompt: list[int]
    header: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a window says, the measures by which it was accepted, and when its first token came (time.perf_counter).

    `last_temperature` is the last that was tried: that of the text, unless all tries failed.
    """

    hypothesis: Hypothesis
    text: str
    temperature: float
    last_temperature: float
    compression_ratio: float
    no_speech_prob: float
    first_token: float

    @property
    def avg_logprob(self) -> float:
        return self.hypothesis.avg_logprob


def compression_ratio(text: str) -> float:
    """Bytes of `text` in UTF-8 over the same deflated: above 2.4 or so it repeats itself."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


class WindowDecoder:
    """Decodes windows with one set of options."""

    def __init__(self, model: SpeechModel, options: TranscribeOptions) -> None:
        self.model = model
        self.options = options
        special = model.tokens.special
        self.stamps: TimestampRule | NoTimestamps
        if options.timestamps:
            latest = round(options.max_initial_timestamp / model.frame)
            self.stamps = TimestampRule(special.end, special.no_timestamps, latest)
        else:
            self.stamps = NoTimestamps(special.no_timestamps, model.shape.vocabulary)
        never, first = Suppress(model.suppress), Suppress(model.suppress_first, at_start=True)
        self.rules: list[Rule] = [never, first, self.stamps]

    def decode(self, window: Window, generate: Callable[[Sequence[Job]], None]) -> Decoded:
        """The text of `window`; `generate` runs jobs to their end."""
        tries: list[Decoded] = []
        for temperature in self.options.temperatures:
            job = Job(window.row, window.prompt, self._search(window, temperature), watch=[window.header])
            generate([job])
            tries.append(self._decoded(job, temperature))
            if self._accepts(tries[-1]):
                break
        return replace(self._best(tries), last_temperature=tries[-1].temperature)

    def _search(self, window: Window, temperature: float) -> Search:
        positions = self.model.shape.positions
        length = min(positions // 2, positions - len(window.prompt))
        limits = Limits(self.model.tokens.special.end, length, self.rules, ruling=self.stamps)
        options = self.options
        if temperature == 0:
            if options.beams == 1:
                return Sample(limits)
            return Beam(limits, width=options.beams, length_penalty=options.length_penalty, patience=options.patience)
        # a seed of the window's own: its samples must not depend on the windows beside it
        rng = np.random.default_rng([options.seed, window.start, round(temperature * 1000)])
        return Sample(limits, temperature=temperature, count=options.best_of, rng=rng)

    def _decoded(self, job: Job, temperature: float) -> Decoded:
        best = job.search.results()[0]
        assert job.prompt_logits is not None
        scores = job.prompt_logits[0].astype(np.float64)
        odds = np.exp(scores - scores.max())
        text = self.model.tokens.text(best.tokens)
        silence = float(odds[self.model.tokens.special.no_speech] / odds.sum())
        return Decoded(best, text, temperature, temperature, compression_ratio(text), silence, job.first_token)

    def _improbable(self, decoded: Decoded) -> bool:
        lowest = self.options.logprob_threshold
        return lowest is not None and decoded.avg_logprob < lowest

    def is_silence(self, decoded: Decoded) -> bool:
        """Whether a window is to be skipped: it likely holds no speech, and its text is improbable."""
        threshold = self.options.no_speech_threshold
        if threshold is None or decoded.no_speech_prob <= threshold:
            return False
        return self.options.logprob_threshold is None or self._improbable(decoded)

    def _accepts(self, decoded: Decoded) -> bool:
        highest = self.options.compression_ratio_threshold
        repeats = highest is not None and decoded.compression_ratio > highest
        return self.is_silence(decoded) or not (repeats or self._improbable(decoded))

    def _best(self, tries: list[Decoded]) -> Decoded:
        """The last, if it was accepted; else the most probable, those that repeat themselves last."""
        if self._accepts(tries[-1]):
            return tries[-1]
        highest = self.options.compression_ratio_threshold
        calm = [one for one in tries if highest is None or one.compression_ratio <= highest]
        return max(calm or tries, key=lambda one: one.avg_logprob)
