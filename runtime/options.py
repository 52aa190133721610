"""What the options of all tasks share: frozen dataclasses made from a caller's keyword arguments."""

import sys
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from heedful.runtime.errors import InputError

T = TypeVar("T")

STEEPEST = 50
"""The largest length_penalty: a million tokens to that power are a number still."""


def options_of(kind: type[T], given: dict[str, Any]) -> T:
    """The options of dataclass `kind` from keyword arguments; InputError names one that does not exist."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if unknown := [name for name in given if name not in known]:
        raise InputError(f"unknown option {unknown[0]!r}: there are {', '.join(known)}")
    return kind(**given)


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Raise InputError unless `value`, of the option `name`, is a whole number from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(f"{name} must be a whole number from {least} to {most}, not {value!r}")


def check_number(name: str, value: object, most: float = sys.float_info.max) -> None:
    """Raise InputError unless `value`, of the option `name`, is a finite number from -`most` to `most`."""
    if isinstance(value, bool) or not isinstance(value, float | int) or not abs(value) <= most:
        within = "" if most == sys.float_info.max else f" from {-most} to {most}"
        raise InputError(f"{name} must be a number{within}, not {value!r}")


def check_kind(name: str, value: object, kind: type) -> None:
    """Raise InputError unless `value`, of the option `name`, is of `kind`."""
    if not isinstance(value, kind):
        raise InputError(f"{name} must be a {kind.__name__}, not {value!r}")


def check_text(name: str, value: object) -> None:
    """Raise InputError unless `value`, of the option `name`, is a str that UTF-8 can hold."""
    check_kind(name, value, str)
    assert isinstance(value, str)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"half of a character, {value[error.start]!r} at {error.start}"
        raise InputError(f"{name} has {half}: decode it anew, all of it as UTF-8 or UTF-16") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How a text is searched for; where one is None the bundle's own setting holds.

    beams: width of the beam search; 1 is greedy. length_penalty, early_stopping, no_repeat_ngram, repetition_penalty,
    min_length, max_length: as in transformers, lengths in tokens. prompt: text that goes before. batch: inputs decoded
    side by side.
    """

    beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    no_repeat_ngram: int | None = None
    repetition_penalty: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    prompt: str | None = None
    batch: int = 32

    def __post_init__(self) -> None:
        check_whole("batch", self.batch, 1, 1024)
        for name, least, most in (
            ("beams", 1, 256),
            ("no_repeat_ngram", 0, 100),
            ("min_length", 0, 1_000_000),
            ("max_length", 1, 1_000_000),
        ):
            value = getattr(self, name)
            if value is not None:
                check_whole(name, value, least, most)
        if self.prompt is not None:
            check_text("prompt", self.prompt)
        if not isinstance(self.early_stopping, bool | None) and self.early_stopping != "never":
            raise InputError(f"early_stopping must be True, False or 'never', not {self.early_stopping!r}")
        if self.length_penalty is not None:
            check_number("length_penalty", self.length_penalty, STEEPEST)
        if self.repetition_penalty is not None:
            check_number("repetition_penalty", self.repetition_penalty)
            if self.repetition_penalty <= 0:
                raise InputError(f"repetition_penalty must be above 0, not {self.repetition_penalty!r}")

    def search(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The bundle's `settings` with what is given here in their place."""
        # of a bundle that was made before this one was followed
        settings = {"repetition_penalty": 1.0, **settings}
        given = {name: getattr(self, name) for name in settings if hasattr(self, name)}
        return settings | {name: value for name, value in given.items() if value is not None}
