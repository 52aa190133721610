"""Which files were found to have their SHA-256 before: what nobody touched since is not read to its end each time.

A file that is written to, replaced or restored has another size, time of change, or inode than when it was verified,
and is verified again. Whoever can set those back could write the manifest as well.
"""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from heedful.runtime.errors import InputError
from heedful.runtime.home import home
from heedful.runtime.output import open_output

# smaller files are read as soon as looked up
_SMALLEST = 1 << 20
# a file that has just been written could be written again without a change of its time
_SETTLED = 2.0


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Digests:
    """SHA-256 of files, from what `home()` remembers of those that are as they were."""

    def __init__(self) -> None:
        self._known = _read()
        self._new: dict[str, list[Any]] = {}

    def __call__(self, path: Path) -> str:
        """What `sha256` says of `path`, or said."""
        status = path.stat()
        # what changes with a file, as JSON gives it back
        signature = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
        name = str(path.absolute())
        match self._known.get(name):
            case [str(digest), *known] if known == signature:
                return digest
        digest = sha256(path)
        if status.st_size >= _SMALLEST and time.time() - max(status.st_ctime, status.st_mtime) > _SETTLED:
            self._new[name] = [digest, *signature]
        return digest

    def save(self) -> None:
        """Remember what had to be read; where that cannot be written, it is read again next time."""
        if not self._new:
            return
        kept = {path: known for path, known in {**_read(), **self._new}.items() if not _is_gone(path)}
        with contextlib.suppress(OSError, InputError, RecursionError), open_output(_file()) as file:
            json.dump(kept, file)


def _is_gone(path: str) -> bool:
    """Whether no such file can be there; in another user's folder, where nobody may look, there can."""
    try:
        os.stat(path)
    except PermissionError:
        return False
    except (OSError, ValueError):
        return True
    return False


def _file() -> Path:
    return home() / "verified.json"


def _read() -> dict[str, Any]:
    """What is remembered: nothing where it cannot be read, is damaged, or there is no home for it."""
    try:
        known = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}
