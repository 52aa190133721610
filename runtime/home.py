"""The one folder where checkpoints, bundles and samples live, and how a name becomes a path."""

import os
import sys
from pathlib import Path
from typing import Literal

from heedful.runtime.errors import InputError

STDIN = "-"
"""What stands for standard input where a file may be named."""

Kind = Literal["checkpoints", "bundles", "samples", "downloads"]


def home() -> Path:
    """`HEEDFUL_HOME`, else the user's cache folder (XDG, macOS or Windows). Raises InputError where there is none."""
    try:
        if chosen := os.environ.get("HEEDFUL_HOME"):
            return Path(chosen).expanduser()
        return _user_cache() / "heedful"
    except RuntimeError as error:  # a user whom the system does not know has no home folder
        raise InputError(f"no folder for Heedful's files ({error}): set HEEDFUL_HOME to one") from error


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def is_name(text: str) -> bool:
    """Whether `text` can be a name: no separator, not `.` or `..`."""
    return text not in {"", ".", ".."} and "/" not in text and os.sep not in text


def locate(name_or_path: str | os.PathLike[str], kind: Kind) -> Path:
    """The path meant by `name_or_path`: itself when it exists, else the entry of that name in `home()/kind`.

    The result need not exist: a path that is nowhere comes back as the place where it would be.
    """
    text = os.fspath(name_or_path)
    # unlike Path's, this leaves an unknown user's ~ as it is
    path = Path(os.path.expanduser(text))
    if is_name(text) and not os.path.lexists(path):
        return home() / kind / text
    return path


def sample(name: str) -> str:
    """The path of the sample called `name` if there is one, else `name` itself: a Path would change an address."""
    found = locate(name, "samples")
    # Path.exists raises for a name that is too long and for a folder without permission
    return os.fspath(found) if os.path.exists(found) else name


def check_address(path: str, name: str) -> None:
    """Raises InputError, calling it `name`, where `path` is an address: nothing is downloaded unasked."""
    if path.startswith("data:") or "://" in path:
        raise InputError(f"{name[:80]}: an address; download it first and pass the file or its bytes")


def listed(kind: Kind) -> list[Path]:
    """The entries of `home()/kind`, sorted by name; hidden and unfinished ones (a leading dot) left out."""
    folder = home() / kind
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
