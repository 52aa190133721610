"""Where files live, and how a name becomes a path."""

import os
import string
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heedful.runtime.errors import InputError
from heedful.runtime.home import home, is_name, listed, locate, sample

names = st.text(string.ascii_letters + string.digits + "-_. é", min_size=1).filter(lambda name: name.strip(". "))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HEEDFUL_HOME, a folder not made yet; the current folder is another, empty one."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("HEEDFUL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_home_is_where_the_variable_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert home() == folder
    monkeypatch.setenv("HEEDFUL_HOME", os.path.join("~", "models"))
    assert home() == Path.home() / "models"


@pytest.mark.parametrize(
    ("platform", "variable", "default"),
    [
        ("linux", "XDG_CACHE_HOME", ".cache"),
        ("freebsd14", "XDG_CACHE_HOME", ".cache"),
        ("darwin", None, "Library/Caches"),
        ("win32", "LOCALAPPDATA", "AppData/Local"),
    ],
)
def test_home_is_otherwise_in_the_users_cache(
    platform: str, variable: str | None, default: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HEEDFUL_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    assert home() == Path.home() / default / "heedful"
    if variable:
        monkeypatch.setenv(variable, "")
        assert home() == Path.home() / default / "heedful"
        monkeypatch.setenv(variable, str(tmp_path))
        assert home() == tmp_path / "heedful"


def test_an_empty_variable_is_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEEDFUL_HOME", "")
    assert home().name == "heedful"


@pytest.mark.parametrize("chosen", ["", "~nobody-of-this-name/models"])
def test_a_user_without_a_home_folder_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    """As in a container whose user the system does not know."""

    def unknown(path: str) -> str:
        return path

    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HEEDFUL_HOME", chosen)
    monkeypatch.setattr(os.path, "expanduser", unknown)
    with pytest.raises(InputError, match=r"no folder for Heedful's files.*: set HEEDFUL_HOME to one"):
        home()


@pytest.mark.parametrize("text", ["", ".", "..", "a/b", "/a", "a/", "./a"])
def test_what_can_not_be_a_name(text: str) -> None:
    assert not is_name(text)


@given(name=names)
def test_a_name_is_one_part_of_a_path(name: str) -> None:
    assert is_name(name)
    assert Path(name).parts == (name,)
    assert not is_name(f"{name}/{name}")


@pytest.mark.parametrize("kind", ["checkpoints", "bundles", "samples", "downloads"])
def test_a_name_is_looked_up_in_the_home(kind: str, folder: Path) -> None:
    assert locate("tiny", kind) == folder / kind / "tiny"  # type: ignore[arg-type]
    assert not folder.exists()


def test_what_exists_comes_before_the_home(folder: Path, tmp_path: Path) -> None:
    (folder / "bundles" / "tiny").mkdir(parents=True)
    assert locate("tiny", "bundles") == folder / "bundles" / "tiny"
    Path("tiny").mkdir()
    assert locate("tiny", "bundles") == Path("tiny")
    assert locate(tmp_path / "home" / "bundles", "bundles") == tmp_path / "home" / "bundles"


@pytest.mark.parametrize("path", ["./tiny", "org/tiny", "../tiny", "/nowhere/tiny"])
def test_a_path_is_never_looked_up_in_the_home(path: str, folder: Path) -> None:
    (folder / "bundles" / "tiny").mkdir(parents=True)
    assert locate(path, "bundles") == Path(path)


def test_a_path_may_begin_with_a_tilde(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "talk.wav").touch()
    assert locate("~/talk.wav", "samples") == tmp_path / "talk.wav"


def test_a_file_comes_before_a_sample(folder: Path) -> None:
    (folder / "samples").mkdir(parents=True)
    (folder / "samples" / "talk.wav").touch()
    assert sample("talk.wav") == str(folder / "samples" / "talk.wav")
    Path("talk.wav").touch()
    assert sample("talk.wav") == "talk.wav"


def test_what_is_no_sample_stays_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https://example.org/cat.jpg", "./cat.jpg", "a" * 300, f"{'a' * 300}/cat.jpg", "cat\0.jpg"):
        assert sample(name) == name

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", forbidden)
    assert sample("private/cat.jpg") == "private/cat.jpg"


def test_listed_is_sorted_and_leaves_out_the_unfinished(folder: Path) -> None:
    assert listed("bundles") == []
    for name in ("whisper-tiny", "marian", ".whisper-base.part", "blip"):
        (folder / "bundles" / name).mkdir(parents=True)
    (folder / "checkpoints" / "other").mkdir(parents=True)
    assert [path.name for path in listed("bundles")] == ["blip", "marian", "whisper-tiny"]


def test_listed_is_empty_where_the_home_is_a_file(folder: Path) -> None:
    folder.touch()
    assert listed("bundles") == []
