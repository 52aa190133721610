"""Files that are there only once they are whole."""

import io
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from heedful.runtime.errors import InputError


@contextmanager
def open_output(target: Path | None) -> Iterator[IO[str]]:
    """Standard output, or a file that is there only once it is whole, with the mode of the one that it replaces.

    A link is followed; a device or a pipe is written to as it is. Raises InputError, which names `target`, where it
    cannot be opened or replaced or, from within the caller's block, written to.
    """
    if target is None or _is_stdout(target):
        yield sys.stdout
        return
    with _naming(target):
        if target.is_dir():
            raise InputError(f"{target} is a folder: name a file")
        whole = None if target.exists() and not target.is_file() else Path(os.path.realpath(target))
        raw = _File(target, target, "w") if whole is None else _beside(whole, target)
    output = io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8")
    try:
        yield output
        with _naming(target):
            output.close()
            if whole is not None:
                if whole.exists():
                    shutil.copymode(whole, raw.name)  # the umask may have taken some
                os.replace(raw.name, whole)
    except BaseException:
        with suppress(OSError, InputError):  # what the caller's block raised says more
            output.close()
        if whole is not None:
            os.unlink(raw.name)
        raise


class _File(io.FileIO):
    """A file whose errors name `target`: they come up in the caller's block, beside OSErrors of another origin."""

    def __init__(self, target: Path, path: Path, mode: str, opener: Callable[[str, int], int] | None = None) -> None:
        super().__init__(path, mode, opener=opener)
        self.target = target

    def write(self, data: Any) -> int:
        with _naming(self.target):
            return super().write(data)


def _beside(whole: Path, target: Path) -> _File:
    """A new file in the folder of `whole`, open to nobody whom that file is closed to."""
    whole.parent.mkdir(parents=True, exist_ok=True)
    mode = whole.stat().st_mode & 0o777 if whole.exists() else 0o666
    path = whole.with_name(f".{whole.name}.{secrets.token_hex(8)}")
    return _File(target, path, "x", lambda name, flags: os.open(name, flags, mode))


def _is_stdout(target: Path) -> bool:
    """Whether standard output goes to `target`, /dev/stdout for one: opened once more, a file would be cut off."""
    try:
        return os.path.samestat(os.fstat(sys.stdout.fileno()), target.stat())
    except (AttributeError, OSError, ValueError):
        return False


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Makes InputErrors of OSErrors; but that nobody reads a pipe any longer is no error."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error}") from error
