"""A file that was verified before is taken at its word until somebody touches it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from heedful.runtime import BundleError, InputError, load, open_bundle
from heedful.runtime.verified import sha256


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, and no wait until a file counts as settled."""
    monkeypatch.setenv("HEEDFUL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("heedful.runtime.verified._SETTLED", 0.0)
    monkeypatch.setattr("heedful.runtime.verified._SMALLEST", 0)
    return tmp_path / "home"


@pytest.fixture
def bundle(seeded_bundle: Path, tmp_path: Path, home: Path) -> Path:
    """A copy of a bundle that was opened once."""
    copy = tmp_path / "bundle"
    shutil.copytree(seeded_bundle, copy)
    open_bundle(copy, remembered=True)
    return copy


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that are read for their SHA-256."""
    found: list[str] = []

    def spy(path: Path) -> str:
        found.append(path.name)
        return sha256(path)

    for module in ("bundle", "verified"):
        monkeypatch.setattr(f"heedful.runtime.{module}.sha256", spy)
    return found


def test_what_was_verified_is_not_read_again(bundle: Path, reads: list[str]) -> None:
    open_bundle(bundle, remembered=True)
    load(bundle, "cpu")
    assert reads == []


def test_unless_it_is_asked_for(bundle: Path, reads: list[str]) -> None:
    assert sorted(reads) == []
    assert sorted(open_bundle(bundle).manifest["files"]) == sorted(reads)


def flipped(file: Path) -> bytes:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    return bytes(content)


def test_a_file_that_was_written_to_is_refused_whatever_its_time(bundle: Path) -> None:
    file = bundle / "weights.bin"
    before = file.stat()
    file.write_bytes(flipped(file))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(BundleError, match=r"weights\.bin is not the file"):
        load(bundle, "cpu")


def test_a_file_in_the_place_of_another_is_refused(bundle: Path) -> None:
    file, other = bundle / "weights.bin", bundle / "other"
    other.write_bytes(flipped(file))
    shutil.copystat(file, other)
    other.replace(file)
    with pytest.raises(BundleError, match=r"weights\.bin is not the file"):
        load(bundle, "cpu")


def test_a_manifest_that_asks_for_another_digest_is_refused(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"]["weights.bin"]["sha256"] = "0" * 64
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"weights\.bin is not the file"):
        load(bundle, "cpu")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}', "[" * 100_000], ids=lambda content: content[:9])
def test_a_damaged_memory_is_forgotten(bundle: Path, home: Path, reads: list[str], content: str) -> None:
    (home / "verified.json").write_text(content)
    open_bundle(bundle, remembered=True)
    assert "weights.bin" in reads
    reads.clear()
    open_bundle(bundle, remembered=True)
    assert reads == []


def test_a_file_that_was_just_written_is_not_remembered(
    bundle: Path, home: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heedful.runtime.verified._SETTLED", 3600.0)
    (home / "verified.json").unlink()
    for _ in range(2):
        reads.clear()
        open_bundle(bundle, remembered=True)
        assert "weights.bin" in reads


def test_files_that_are_gone_are_forgotten(bundle: Path, home: Path, seeded_bundle: Path, tmp_path: Path) -> None:
    assert any(str(bundle) in path for path in json.loads((home / "verified.json").read_text()))
    shutil.rmtree(bundle)
    shutil.copytree(seeded_bundle, tmp_path / "second")
    open_bundle(tmp_path / "second", remembered=True)
    assert not any(path.startswith(f"{bundle}{os.sep}") for path in json.loads((home / "verified.json").read_text()))


@pytest.mark.parametrize("error", [PermissionError, OSError], ids=["another user's", "out of reach"])
def test_a_file_that_may_not_be_looked_at_is_no_trouble(
    bundle: Path, home: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    """Several users share a home, and not their own folders; what another remembers is not lost to them."""
    memory, theirs = home / "verified.json", "/theirs/weights.bin"
    memory.write_text(json.dumps({theirs: ["0" * 64, 1, 2, 3, 4, 5]}))
    stat = os.stat

    def refused(path: Any, **options: Any) -> os.stat_result:
        if os.fspath(path) == theirs:
            raise error
        return stat(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refused)
        open_bundle(bundle, remembered=True)
    known = json.loads(memory.read_text())
    assert str(bundle / "weights.bin") in known
    assert (theirs in known) == (error is PermissionError)


def test_a_user_without_a_home_can_load_from_elsewhere(seeded_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError("no home folder here")

    for name in ("HEEDFUL_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", none)
    assert load(seeded_bundle, "cpu").device == "cpu"
    with pytest.raises(InputError, match=r"no home folder here.*: set HEEDFUL_HOME"):
        load("a-name", "cpu")


def test_a_home_that_cannot_be_written_is_no_trouble(
    seeded_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HEEDFUL_HOME", str(tmp_path / "file"))
    assert load(seeded_bundle, "cpu").device == "cpu"
