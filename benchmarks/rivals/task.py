"""One transcription, or translation, in the words of each engine."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from heedful.runtime.home import home

SEARCHES = {"greedy": 1, "beam 5": 5}


@dataclass(frozen=True, slots=True)
class Task:
    """A transcription in English at temperature 0, with timestamps and without the text of earlier windows in the
    prompt. `batch` 0: windows follow one another, no voice activity detector; else so many windows side by side, cut
    by each engine's own detector with its defaults.
    """

    model: str
    audio: str
    beams: int = 1
    batch: int = 0
    threads: int = 2

    def heedful(self, precision: str = "int8") -> dict[str, Any]:
        """The request to run_heedful.py."""
        windows = {"vad": True, "batch": self.batch} if self.batch else {"vad": False}
        options = {"language": "en", "condition_on_previous_text": False, "temperatures": [0.0], "beams": self.beams}
        model = f"{self.model}-{precision}"
        return {"model": model, "threads": self.threads, "audio": self.audio, "options": {**options, **windows}}

    def faster_whisper(self, compute_type: str = "int8") -> dict[str, Any]:
        """The request to run_faster_whisper.py."""
        # the batched pipeline alone leaves timestamps out unless told not to
        windows = {"batch_size": self.batch, "without_timestamps": False} if self.batch else {"vad_filter": False}
        options = {"language": "en", "condition_on_previous_text": False, "temperature": 0.0, "beam_size": self.beams}
        return {
            "model": str(home() / "checkpoints" / self.model),
            "compute_type": compute_type,
            "threads": self.threads,
            "audio": self.audio,
            "options": {**options, **windows},
        }


@dataclass(frozen=True, slots=True)
class Translation:
    """`lines` translated by the model in a folder, `batch` at once where an engine takes more than one. `length`: every
    translation has exactly so many tokens; else the model says where it ends. All is done `calls` times, of which the
    median counts, with `pause` seconds before each.
    """

    model: str
    lines: Sequence[str]
    batch: int = 32
    beams: int = 1
    threads: int = 2
    length: int | None = None
    calls: int = 1
    pause: float = 0

    def request(self, **own: Any) -> dict[str, Any]:
        """The request to any run_*.py that translates, with what only that one knows."""
        return {**asdict(self), **own}
