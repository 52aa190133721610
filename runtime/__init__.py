"""Bundle in, answers out: numpy and onnxruntime, never torch.

What belongs to one task is imported when it is first asked for, so that no task pays for the libraries of the others.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from heedful.runtime.bundle import Bundle, open_bundle
from heedful.runtime.errors import (
    BundleError,
    BusyError,
    CheckpointError,
    DeviceError,
    ExportError,
    FetchError,
    HeedfulError,
    InputError,
)
from heedful.runtime.load import load

if TYPE_CHECKING:
    from heedful.runtime.drawing.explain import explain
    from heedful.runtime.image.captioner import Captioner
    from heedful.runtime.image.options import CaptionOptions
    from heedful.runtime.image.results import Candidate, Caption, CaptionWord
    from heedful.runtime.speech.options import TranscribeOptions
    from heedful.runtime.speech.results import Segment, Transcript, Word
    from heedful.runtime.speech.transcriber import Transcriber
    from heedful.runtime.speech.transcription import Transcription
    from heedful.runtime.speech.vad import VadOptions
    from heedful.runtime.text.options import TextOptions
    from heedful.runtime.text.results import Alignment, Sentence, Written
    from heedful.runtime.text.writer import Summarizer, Translator

__all__ = [
    "Alignment",
    "Bundle",
    "BundleError",
    "BusyError",
    "Candidate",
    "Caption",
    "CaptionOptions",
    "CaptionWord",
    "Captioner",
    "CheckpointError",
    "DeviceError",
    "ExportError",
    "FetchError",
    "HeedfulError",
    "InputError",
    "Segment",
    "Sentence",
    "Summarizer",
    "TextOptions",
    "TranscribeOptions",
    "Transcriber",
    "Transcript",
    "Transcription",
    "Translator",
    "VadOptions",
    "Word",
    "Written",
    "explain",
    "load",
    "open_bundle",
]

_PLACES = {
    "Alignment": "heedful.runtime.text.results",
    "Candidate": "heedful.runtime.image.results",
    "Caption": "heedful.runtime.image.results",
    "CaptionOptions": "heedful.runtime.image.options",
    "CaptionWord": "heedful.runtime.image.results",
    "Captioner": "heedful.runtime.image.captioner",
    "Segment": "heedful.runtime.speech.results",
    "Sentence": "heedful.runtime.text.results",
    "Summarizer": "heedful.runtime.text.writer",
    "TextOptions": "heedful.runtime.text.options",
    "TranscribeOptions": "heedful.runtime.speech.options",
    "Transcriber": "heedful.runtime.speech.transcriber",
    "Transcript": "heedful.runtime.speech.results",
    "Transcription": "heedful.runtime.speech.transcription",
    "Translator": "heedful.runtime.text.writer",
    "VadOptions": "heedful.runtime.speech.vad",
    "Word": "heedful.runtime.speech.results",
    "Written": "heedful.runtime.text.results",
    "explain": "heedful.runtime.drawing.explain",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return __all__
