"""What a caller can ask of a translation or a summary."""

import math
from dataclasses import dataclass
from typing import Any

from heedful.runtime.errors import InputError
from heedful.runtime.options import check_whole, options_of

_KINDS = {"source": str, "target": str, "prompt": str, "early_stopping": bool, "split": bool}
_KINDS |= {"alignment": bool, "shortlist": bool}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """Options of a translation or summary. Where one is None the bundle's own setting holds.

    source, target: language codes, as the model has them; a model of one pair needs none. beams: width of the beam
    search; 1 is greedy. length_penalty, early_stopping, no_repeat_ngram, min_length, max_length: as in transformers,
    lengths in tokens. prompt: text before every input, such as T5's "summarize: ". split: cut texts into sentences,
    which are read one by one; a text longer than the model's positions is cut even without. alignment: say which words
    of the source each word of the result looked at. shortlist: use no words but those that the bundle's shortlist has
    for the source's, which is faster for a single sentence. batch: inputs decoded side by side.
    """

    source: str | None = None
    target: str | None = None
    beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | None = None
    no_repeat_ngram: int | None = None
    min_length: int | None = None
    max_length: int | None = None
    prompt: str | None = None
    split: bool | None = None
    alignment: bool = False
    shortlist: bool = False
    batch: int = 32

    def __post_init__(self) -> None:
        for name, least, most in (
            ("beams", 1, 256),
            ("batch", 1, 1024),
            ("no_repeat_ngram", 0, 100),
            ("min_length", 0, 1_000_000),
            ("max_length", 1, 1_000_000),
        ):
            value = getattr(self, name)
            if value is not None or name == "batch":
                check_whole(name, value, least, most)
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise InputError(f"{name} must be a {kind.__name__}, not {value!r}")
        penalty = self.length_penalty
        if penalty is not None and (
            isinstance(penalty, bool) or not isinstance(penalty, float | int) or not math.isfinite(penalty)
        ):
            raise InputError(f"length_penalty must be a number, not {penalty!r}")

    @classmethod
    def of(cls, **given: object) -> "TextOptions":
        """Options from keyword arguments; InputError names one that does not exist."""
        return options_of(cls, given)

    def search(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The bundle's `settings` with what is given here in their place."""
        given = {name: getattr(self, name) for name in settings if hasattr(self, name)}
        return settings | {name: value for name, value in given.items() if value is not None}
