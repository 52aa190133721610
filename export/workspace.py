"""A hidden folder beside what is being written, and an end to those that killed processes left there."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

_LOCK = "lock"


@contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`, whose folder is made. Earlier ones whose process is gone are removed first.

    Raises `OSError` when the disk refuses.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}."
    for left in target.parent.glob(".*"):
        if re.fullmatch(re.escape(prefix) + r"\w{8}", left.name) and (left / _LOCK).is_file():
            _remove_unless_held(left)
    # the lock is freed however its process ends; on Windows a file that is open could not be removed
    with TemporaryDirectory(prefix=prefix, dir=target.parent) as folder, FileLock(Path(folder) / _LOCK):
        yield Path(folder)


def _remove_unless_held(folder: Path) -> None:
    with suppress(Timeout):
        with FileLock(folder / _LOCK, timeout=0):
            pass
        shutil.rmtree(folder, ignore_errors=True)
