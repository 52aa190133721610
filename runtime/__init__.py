"""Bundle in, answers out: numpy and onnxruntime, never torch."""

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
from heedful.runtime.image.captioner import Captioner
from heedful.runtime.image.options import CaptionOptions
from heedful.runtime.image.results import Candidate, Caption, CaptionWord
from heedful.runtime.load import load
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
    "load",
    "open_bundle",
]
