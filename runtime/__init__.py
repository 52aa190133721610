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
from heedful.runtime.load import load
from heedful.runtime.speech.options import TranscribeOptions
from heedful.runtime.speech.results import Segment, Transcript, Word
from heedful.runtime.speech.transcriber import Transcriber
from heedful.runtime.speech.transcription import Transcription
from heedful.runtime.speech.vad import VadOptions

__all__ = [
    "Bundle",
    "BundleError",
    "BusyError",
    "CheckpointError",
    "DeviceError",
    "ExportError",
    "FetchError",
    "HeedfulError",
    "InputError",
    "Segment",
    "TranscribeOptions",
    "Transcriber",
    "Transcript",
    "Transcription",
    "VadOptions",
    "Word",
    "load",
    "open_bundle",
]
