"""What the options of all tasks share: frozen dataclasses made from a caller's keyword arguments."""

from dataclasses import fields
from typing import Any, TypeVar

from heedful.runtime.errors import InputError

T = TypeVar("T")


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
