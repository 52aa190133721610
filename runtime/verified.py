"""Which files were found to have their SHA-256 before: what nobody touched since is not read to its end each time.

A file that is written to, replaced or restored has another size, time of change, or inode than when it was verified,
and is verified again. Whoever can set those back could write the manifest as well.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from heedful.runtime.home import home

# smaller files are read as soon as looked up
_SMALLEST = 1 << 20
# a file that has just been written could be written again without a change of its time
_SETTLED = 2.0


class Verified:
    """Files that were verified before, as `home()` remembers them."""

    def __init__(self) -> None:
        self._known = _read()
        self._new: dict[str, list[Any]] = {}

    def __contains__(self, file: tuple[Path, str]) -> bool:
        """Whether this path was verified to have this SHA-256 and is as it was then."""
        path, digest = file
        return self._known.get(str(path.absolute())) == _signature(path, digest)

    def add(self, path: Path, digest: str) -> None:
        """Remember that `path` has the SHA-256 `digest`, after `save`."""
        status = path.stat()
        if status.st_size >= _SMALLEST and time.time() - max(status.st_ctime, status.st_mtime) > _SETTLED:
            self._new[str(path.absolute())] = _signature(path, digest)

    def save(self) -> None:
        """Write down what was added; where that cannot be, it is verified again next time."""
        if not self._new:
            return
        kept = {path: known for path, known in {**_read(), **self._new}.items() if Path(path).exists()}
        with contextlib.suppress(OSError):
            home().mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=".verified.", dir=home())
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(kept, file)
            os.replace(name, _file())


def _file() -> Path:
    return home() / "verified.json"


def _read() -> dict[str, Any]:
    try:
        known = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _signature(path: Path, digest: str) -> list[Any]:
    """What changes with a file, as JSON gives it back."""
    status = path.stat()
    return [digest, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
