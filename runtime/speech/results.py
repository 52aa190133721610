"""What a transcription gives back: frozen, typed, times in seconds from the start of the audio."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Word:
    """One word with its time span; `text` keeps its leading space, `probability` is the mean over its tokens."""

    start: float
    end: float
    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class Segment:
    """One stretch of speech.

    `seek` is where the window began that it was decoded from, in seconds; `tokens` are the ids behind `text`,
    timestamp tokens included; `avg_logprob` is the mean natural-log probability of a token; `compression_ratio`
    is utf-8 bytes of the window's text over the same text deflated; `words` is None unless asked for.
    """

    id: int
    seek: float
    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: tuple[Word, ...] | None = None


@dataclass(frozen=True, slots=True)
class Transcript:
    """A whole recording: `duration` in seconds; `language` an ISO 639 code, `language_probability` 1.0 if given."""

    text: str
    task: str
    language: str
    language_probability: float
    duration: float
    segments: tuple[Segment, ...]
