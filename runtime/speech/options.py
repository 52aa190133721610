"""What a caller can ask of a transcription."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from heedful.runtime.errors import InputError
from heedful.runtime.options import STEEPEST, check_kind, check_number, check_text, check_whole, options_of
from heedful.runtime.speech.vad import VadOptions

Task = Literal["transcribe", "translate"]

_TEXTS = ("language", "initial_prompt", "hotwords")
_SWITCHES = ("condition_on_previous_text", "timestamps", "words")
_NUMBERS = ("patience", "max_initial_timestamp")
_THRESHOLDS = ("compression_ratio_threshold", "logprob_threshold", "no_speech_threshold")


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscribeOptions:
    """Options of a transcription. They mean the same whether windows follow one another or run side by side.

    language: ISO 639 code; None to detect it in the first window. task: `translate` gives English.
    beams: width of the beam search; 1 is greedy. patience, length_penalty: of the beam search.
    temperatures: tried in turn until a window passes the thresholds. best_of: samples drawn at a temperature above 0.
    compression_ratio_threshold: text that deflates better repeats itself. logprob_threshold: lowest mean
    log-probability of a token. no_speech_threshold: a window more likely than this to hold no speech is skipped when
    it also fails logprob_threshold. Each None switches its test off.
    condition_on_previous_text: the text so far is part of the prompt. initial_prompt: text before the first window.
    hotwords: words to expect, before every window. timestamps: let the model mark segments.
    max_initial_timestamp: seconds, the latest start of a window's first segment. words: align every word.
    vad: find speech first, and cut windows at silences; None for only where `batch` is above 1, True for the
    defaults of VadOptions. batch: windows decoded side by side; above 1 they must come from the vad.
    seed: of the samples drawn.
    """

    language: str | None = None
    task: Task = "transcribe"
    beams: int = 5
    patience: float = 1.0
    length_penalty: float = 1.0
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    best_of: int = 5
    compression_ratio_threshold: float | None = 2.4
    logprob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    condition_on_previous_text: bool = True
    initial_prompt: str | None = None
    hotwords: str | None = None
    timestamps: bool = True
    max_initial_timestamp: float = 1.0
    words: bool = False
    vad: bool | VadOptions | None = None
    batch: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("beams", "best_of", "batch"):
            check_whole(name, getattr(self, name), 1, 256)
        if self.task not in get_args(Task):
            raise InputError(f"unknown task {self.task!r}: choose one of {', '.join(get_args(Task))}")
        if not _are_temperatures(self.temperatures):
            raise InputError(f"temperatures must be one or more numbers of at least 0, not {self.temperatures!r}")
        check_whole("seed", self.seed, 0, 2**63 - 1)
        for name in _SWITCHES:
            check_kind(name, getattr(self, name), bool)
        check_number("length_penalty", self.length_penalty, STEEPEST)
        for name in _NUMBERS:
            check_number(name, getattr(self, name))
        for names, check in ((_TEXTS, check_text), (_THRESHOLDS, check_number)):
            for name in names:
                if (value := getattr(self, name)) is not None:
                    check(name, value)
        if not isinstance(self.vad, bool | VadOptions | None):
            raise InputError(f"vad must be True, False or VadOptions, not {self.vad!r}")
        if not self.patience > 0:
            raise InputError(f"patience must be above 0, not {self.patience!r}")
        if not self.max_initial_timestamp >= 0:
            raise InputError(f"max_initial_timestamp must be at least 0 seconds, not {self.max_initial_timestamp!r}")
        if self.batch > 1 and self.vad is False:
            raise InputError("windows can only be batched when the vad cuts them: leave vad out, or batch at 1")

    @property
    def vad_options(self) -> VadOptions | None:
        """The voice activity detector to use, None for windows that follow one another."""
        if isinstance(self.vad, VadOptions):
            return self.vad
        return VadOptions() if self.vad or (self.vad is None and self.batch > 1) else None

    @classmethod
    def of(cls, **given: object) -> "TranscribeOptions":
        """Options from keyword arguments; InputError names one that does not exist."""
        return options_of(cls, given)


def _are_temperatures(value: object) -> bool:
    if not isinstance(value, tuple | list) or not value:
        return False
    return all(isinstance(t, float | int) and math.isfinite(t) and t >= 0 for t in value)
