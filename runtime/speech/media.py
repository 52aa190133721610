"""Media files: opened so that they can do no harm, and decoded as far as they can be."""

import io
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import BinaryIO

import av
from av.container import InputContainer

from heedful.runtime.errors import InputError

File = str | os.PathLike[str] | bytes | BinaryIO


class Damage:
    """The first damage of a recording: the `second` where it is, infinite if there is none, and `what` it is."""

    def __init__(self) -> None:
        self.second = math.inf
        self.what = ""

    def add(self, second: float, what: str) -> None:
        if second < self.second:
            self.second, self.what = second, what


@contextmanager
def opened_media(source: File, name: str) -> Iterator[InputContainer]:
    """A file with an audio track; `name` is what messages call it. InputError as for `read_audio`, also for the block's
    OSErrors: PyAV passes on those of a disk or a network as they are.
    """
    with (
        _readable(name),
        _opened(source) as file,
        _seekable(file, name) as seekable,
        _container(seekable, name) as container,
    ):
        if not container.streams.audio:
            raise InputError(f"{name}: no audio track")
        yield container


def decoded(container: InputContainer, damage: Damage, name: str) -> Iterator[av.AudioFrame]:
    """The frames of the first audio track that can be decoded; InputError where there are none but damaged ones."""
    packets = container.demux(container.streams.audio[0])
    seconds = 0.0
    while True:
        try:
            packet = next(packets, None)
            frames = packet.decode() if packet is not None else []
        except av.FFmpegError as error:
            damage.add(seconds, error.strerror or str(error))
            continue
        if packet is None:
            break
        for frame in frames:
            seconds += frame.samples / frame.sample_rate
            yield frame
    if damage.what and seconds == 0:
        raise InputError(f"{name}: nothing of its audio can be decoded ({damage.what})")


def duration(path: str | os.PathLike[str]) -> float | None:
    """Seconds that a file says it lasts; None where it does not say so, is none that can be read, or a pipe, of which
    this would take the beginning.
    """
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file, _container(file, os.fspath(path)) as container:
            return container.duration / av.time_base if container.duration else None
    except (InputError, OSError):
        return None


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror or error})") from error


def _opened(source: File) -> AbstractContextManager[BinaryIO]:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, str | os.PathLike):
        return open(source, "rb")
    return nullcontext(source)


@contextmanager
def _seekable(file: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """`file` at its beginning, or a temporary copy if it cannot seek: some formats keep an index at the end."""
    if hasattr(file, "seek") and (not hasattr(file, "seekable") or file.seekable()):
        file.seek(0)
        yield file
        return
    with ExitStack() as stack:
        try:
            copy = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(file, copy)
            copy.seek(0)
        except OSError as error:
            raise InputError(
                f"{name}: cannot be copied to a temporary file ({error.strerror or error}): "
                "free some room, or name another folder in TMPDIR"
            ) from error
        yield copy


def _container(file: BinaryIO, name: str) -> InputContainer:
    # Only these three: the caller's file stays open, and its name tells FFmpeg nothing that its bytes do not.
    view = SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell)
    # No protocol is called "none": a playlist cannot make FFmpeg open another file or an address.
    options = {"protocol_whitelist": "none"}
    head = file.read(12)
    file.seek(0)
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        # FFmpeg would read ten times as much to see whether another codec hides in plain samples, for 15 ms
        options["probesize"] = "32768"
        # and hand over but 2,048 samples at a time
        options["max_size"] = "65536"
    try:
        return av.open(view, "r", options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        raise InputError(f"{name}: not an audio file ({error.strerror})") from error
