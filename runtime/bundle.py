"""A bundle on disk: graphs, weights, tokenizer and the manifest that says what they are."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heedful.runtime.errors import BundleError, OutdatedBundleError
from heedful.runtime.home import home, listed, locate
from heedful.runtime.verified import Digests, sha256

MANIFEST = "bundle.json"
VERSION = 7
"""Of the manifest's layout and of what graphs take, give and rely on: raised whenever they change."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files were all found to be what its manifest says."""

    path: Path
    manifest: dict[str, Any]

    def file(self, name: str) -> Path:
        """The path of the bundle's file `name`, which must be in the manifest."""
        if name not in self.manifest["files"]:
            raise BundleError(f"{self.path} has no {name}: export it again")
        return self.path / name


def open_bundle(name_or_path: str | os.PathLike[str], *, remembered: bool = False) -> Bundle:
    """Find, read and verify a bundle: every file must be there, with the size and SHA-256 that the manifest states.

    With `remembered` large files that had it before and were not touched since (runtime/verified.py) are not read.
    Raises BundleError when it is missing, altered, of another version, or not a bundle.
    """
    path = locate(name_or_path, "bundles")
    if not path.is_dir():
        known = ", ".join(entry.name for entry in listed("bundles")) or "none yet"
        raise BundleError(
            f"no bundle {os.fspath(name_or_path)!r}: it is not a folder and not in {home() / 'bundles'} "
            f"(there: {known}); `heedful export CHECKPOINT BUNDLE` makes one "
            "(pip install 'heedful[export]'; the README says how the default ones are made)"
        )
    manifest = read_manifest(path)
    digests = Digests()
    for name, expected in manifest["files"].items():
        _verify(path, name, expected, digests if remembered else sha256)
    digests.save()
    return Bundle(path, manifest)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest in the folder `path`, its files not yet verified.

    Raises BundleError, and OutdatedBundleError where the format is from before this version's.
    """
    file = path / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}") from None
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error}") from error
    except ValueError as error:
        raise BundleError(f"{file} is not valid JSON ({error}): export the bundle again") from error
    version = manifest.get("heedful") if isinstance(manifest, dict) else None
    if not isinstance(version, int):
        raise BundleError(f"{file} is not the manifest of a Heedful bundle")
    formats = f"{path} is of format {version}, this Heedful reads {VERSION}"
    if version > VERSION:
        raise BundleError(f"{formats}: upgrade heedful")
    if version < VERSION:
        raise OutdatedBundleError(f"{formats}: export it again")
    files = manifest.get("files")
    if not isinstance(files, dict) or not {"task", "family"} <= manifest.keys():
        raise BundleError(f"{file} is incomplete: export the bundle again")
    return manifest


def _verify(folder: Path, name: str, expected: Any, digest: Callable[[Path], str]) -> None:
    # a manifest may come from a stranger: it must not make the runtime read elsewhere
    path = folder / name
    if name != Path(name).name or path.resolve().parent != folder.resolve():
        raise BundleError(f"{folder / MANIFEST} names a file outside the bundle: {name}")
    if not path.is_file():
        raise BundleError(f"{folder} lacks {name}: copy the whole bundle, or export it again")
    if not isinstance(expected, dict) or not {"sha256", "bytes"} <= expected.keys():
        raise BundleError(f"{folder / MANIFEST} does not state the size and SHA-256 of {name}: export the bundle again")
    if path.stat().st_size != expected["bytes"] or digest(path) != expected["sha256"]:
        raise BundleError(
            f"{path} is not the file that the bundle was made with: copy the bundle again, or export it again"
        )
