"""Where output goes: to files that are there once they are whole, to pipes and standard output."""

import io
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from heedful.runtime import cli
from heedful.runtime.errors import InputError
from heedful.runtime.output import open_output


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture(params=[0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_file_has_the_mode_that_the_umask_leaves(umask: int, tmp_path: Path) -> None:
    target = tmp_path / "new" / "out.txt"
    with open_output(target) as output:
        output.write("é\n")
        (unfinished,) = target.parent.iterdir()
        assert mode(unfinished) == 0o666 & ~umask
    assert target.read_bytes() == "é\n".encode()
    assert mode(target) == 0o666 & ~umask


@pytest.mark.parametrize("kept", [0o400, 0o600, 0o664, 0o755])
def test_a_file_that_is_replaced_keeps_its_mode(umask: int, tmp_path: Path, kept: int) -> None:
    target = tmp_path / "out.txt"
    target.touch()
    target.chmod(kept)
    with open_output(target) as output:
        output.write("new")
    assert (target.read_text(), mode(target)) == ("new", kept)


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link, file = tmp_path / "link", tmp_path / "folder" / "file"
    link.symlink_to(Path("folder", "file"))
    for text in ("new", "newer"):
        with open_output(link) as output:
            output.write(text)
        assert link.is_symlink()
        assert file.read_text() == text
        assert list(file.parent.iterdir()) == [file]


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    with open_output(pipe) as output:
        output.write("through")
    reader.join(10)
    assert read == ["through"]
    assert pipe.is_fifo()


def test_a_pipe_that_nobody_reads_any_longer_is_no_error_of_the_input(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    def write() -> None:
        with open_output(pipe) as output:
            os.close(reader)
            output.write("through")

    with pytest.raises(BrokenPipeError):
        write()


def test_standard_output_by_its_name_is_not_cut_off(tmp_path: Path) -> None:
    # a link as /dev/stdout is, which a mistake would destroy
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    code = "import sys; from pathlib import Path; from heedful.runtime.output import open_output\n"
    code += "print('one')\nwith open_output(Path(sys.argv[1])) as output: output.write('two\\n')\nprint('three')"
    command = [sys.executable, "-c", code, str(tmp_path / "stdout")]
    for words in ("zero\none\ntwo\nthree\n", "zero\n" + "one\ntwo\nthree\n" * 2):
        log = tmp_path / "log"
        if not log.exists():
            log.write_text("zero\n")
        with log.open("a") as stdout:
            subprocess.run(command, stdout=stdout, check=True)
        assert log.read_text() == words
    piped = subprocess.run(command, capture_output=True, check=True)
    assert piped.stdout == b"one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [("folder", "is a folder: name a file"), ("file/out.txt", "cannot be written: ")],
)
def test_what_cannot_be_opened_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"^{tmp_path / name} {message}"), open_output(tmp_path / name):
        pytest.fail("it was opened")


@contextmanager
def full_disk() -> Iterator[None]:
    """Files grow to 100 bytes and no further."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("flush", [True, False], ids=["flushed", "at the end"])
def test_a_full_disk_is_one_error_that_names_the_target(tmp_path: Path, flush: bool) -> None:
    target = tmp_path / "out.txt"
    target.write_text("before")

    def write() -> None:
        with open_output(target) as output:
            output.write("a" * 200)
            if flush:
                output.flush()
                pytest.fail("no error yet")

    with full_disk(), pytest.raises(InputError, match=f"^{target} cannot be written: "):
        write()
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_what_takes_the_target_s_place_is_named(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    with pytest.raises(InputError, match=f"^{target} cannot be written: "), open_output(target):
        target.mkdir()
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [FileNotFoundError("input"), BrokenPipeError(), InputError("input"), KeyError(1)])
def test_other_errors_of_the_block_pass_unchanged(tmp_path: Path, error: Exception) -> None:
    """Even where what was written until then cannot be kept either."""

    def fail() -> None:
        with open_output(tmp_path / "out.txt") as output:
            output.write("a" * 200)
            raise error

    with full_disk(), pytest.raises(type(error)) as caught:
        fail()
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


class Stdout(io.TextIOWrapper):
    """Standard output as a system has it that does not speak UTF-8."""

    def __init__(self, encoding: str, terminal: bool) -> None:
        self.written = io.BytesIO()
        self.terminal = terminal
        super().__init__(self.written, encoding=encoding, newline="\n")

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize(
    ("encoding", "terminal", "asked", "expected"),
    [
        ("cp1252", False, "", "Š漢".encode() + b"\xff"),
        ("ascii", False, "", "Š漢".encode() + b"\xff"),
        ("utf-8", False, "", "Š漢".encode() + b"\xff"),
        ("utf-8", True, "", "Š漢".encode() + b"\xff"),
        ("cp1252", True, "", b"\x8a??"),
        ("latin-1", False, "latin-1", b"???"),
        ("latin-1", False, "latin-1:backslashreplace", rb"\u0160\u6f22\udcff"),
        ("cp1252", False, ":replace", "Š漢?".encode()),
    ],
)
def test_standard_output_takes_any_text(
    monkeypatch: pytest.MonkeyPatch, encoding: str, terminal: bool, asked: str, expected: bytes
) -> None:
    """As file names need not be UTF-8, so does the name of a folder here."""
    stdout = Stdout(encoding, terminal)
    monkeypatch.setenv("PYTHONIOENCODING", asked)
    monkeypatch.setenv("HEEDFUL_HOME", "Š漢\udcff")
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "argv", ["heedful", "home"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    stdout.flush()
    assert (ended.value.code, stdout.written.getvalue()) == (0, expected + b"\n")


def test_a_system_without_utf_8_writes_it_to_a_pipe() -> None:
    system = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "HEEDFUL_HOME": "/é"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"} | system
    command = [str(Path(sys.executable).with_name("heedful")), "home"]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert done.stdout == "/é\n".encode()
