"""Sound of every kind, good and bad, through the whole path: the right answer, or one error that names the input.

What is right is the transcript of the same sound made by numpy at 16 kHz. A network of random weights writes much the
same of any sound, but its probabilities tell a tone from the next to four digits.
"""

import errno
import io
import logging
import os
import struct
import tempfile
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from heedful.runtime import InputError, Transcriber, Transcript, load
from heedful.runtime.speech import vad
from heedful.runtime.speech.audio import read_audio
from heedful.runtime.speech.media import duration

RATE = 16_000
OPTIONS: dict[str, Any] = {"temperatures": (0.0,), "beams": 2}


def tone(rate: int = RATE, hertz: float = 440.0) -> NDArray[np.int16]:
    """Two seconds."""
    return np.round(16_384 * np.sin(2 * np.pi * hertz * np.arange(2 * rate) / rate)).astype(np.int16)


def wav(channels: NDArray[np.int16], rate: int = RATE) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(len(channels))
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(channels.T.astype("<i2").tobytes())
    return file.getvalue()


def floats(samples: NDArray[np.float32]) -> bytes:
    """A WAV file of floats: format 3, which the wave module does not write."""
    data = samples.astype("<f4").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, RATE, 4 * RATE, 4, 32)
    body = b"WAVE" + form + struct.pack("<4sI", b"data", len(data)) + data
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def film(samples: NDArray[np.int16] | None) -> bytes:
    """An MP4 file of three seconds of black, with the sound if there is any."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        picture = out.add_stream("mpeg4", rate=5)
        picture.width = picture.height = 32
        sound = None if samples is None else out.add_stream("alac", rate=RATE, layout="mono", format="s16p")
        image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
        for packet in [packet for frame in [*[image] * 15, None] for packet in picture.encode(frame)]:
            out.mux(packet)
        if sound is not None and samples is not None:
            heard = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            heard.sample_rate = RATE
            for packet in [packet for frame in (heard, None) for packet in sound.encode(frame)]:
                out.mux(packet)
    return file.getvalue()


@pytest.fixture(scope="module")
def seeded(seeded_bundle: Path) -> Transcriber:
    transcriber: Transcriber = load(seeded_bundle, "cpu", threads=1)
    return transcriber


@pytest.fixture(scope="module")
def expected(seeded: Transcriber) -> Transcript:
    return seeded(tone(), sample_rate=RATE, **OPTIONS)


def figures(transcript: Transcript) -> list[float]:
    return [transcript.language_probability, *(segment.avg_logprob for segment in transcript.segments)]


def alike(found: Transcript, expected: Transcript) -> bool:
    """The same text, and probabilities that no other sound has."""
    return found.text == expected.text and figures(found) == pytest.approx(figures(expected), abs=1e-4)


@pytest.mark.parametrize("other", [tone(hertz=300.0), np.zeros(2 * RATE, np.int16)], ids=["300 Hz", "silence"])
def test_another_sound_is_not_alike(seeded: Transcriber, expected: Transcript, other: NDArray[np.int16]) -> None:
    assert expected.text
    assert not alike(seeded(other, sample_rate=RATE, **OPTIONS), expected)


@pytest.mark.parametrize(
    ("source", "rate"),
    [
        (wav(tone()[None]), None),
        (wav(np.repeat(tone()[None], 8, axis=0)), None),
        (np.repeat(tone()[None], 8, axis=0), RATE),
    ],
    ids=["mono", "8 channels", "array of 8 channels"],
)
def test_the_very_samples_give_the_very_transcript(
    seeded: Transcriber, expected: Transcript, source: Any, rate: int | None
) -> None:
    assert seeded(source, sample_rate=rate, **OPTIONS) == expected


@pytest.mark.parametrize(
    ("source", "rate"),
    [
        (wav(tone(8_000)[None], 8_000), None),
        (wav(tone(96_000)[None], 96_000), None),
        (wav(np.repeat(tone(96_000)[None], 8, axis=0), 96_000), None),
        (tone(8_000), 8_000),
        (tone(96_000), 96_000),
        (film(tone()), None),
    ],
    ids=["8 kHz", "96 kHz", "8 channels at 96 kHz", "array at 8 kHz", "array at 96 kHz", "film"],
)
def test_the_same_sound_gives_the_same_answer(
    seeded: Transcriber, expected: Transcript, source: Any, rate: int | None
) -> None:
    found = seeded(source, sample_rate=rate, **OPTIONS)
    assert found.duration == pytest.approx(2, abs=0.1)
    assert alike(found, expected)


def test_a_recording_cut_short_is_what_is_left_of_it(seeded: Transcriber) -> None:
    found = seeded(wav(tone()[None])[: 44 + 2 * 20_000], **OPTIONS)
    assert found == seeded(tone()[:20_000], sample_rate=RATE, **OPTIONS)
    assert found.duration == 1.25


@pytest.mark.parametrize("listen", [False, True], ids=["all", "vad"])
@pytest.mark.parametrize("source", [wav(np.zeros((1, 3 * RATE), np.int16)), np.zeros(3 * RATE)], ids=["file", "array"])
def test_silence_is_no_error(seeded: Transcriber, source: Any, listen: bool) -> None:
    rate = RATE if isinstance(source, np.ndarray) else None
    found = seeded(source, sample_rate=rate, vad=listen, **OPTIONS)
    assert found.duration == 3
    if listen:
        assert (found.text, found.segments) == ("", ())
    times = [time for segment in found.segments for time in (segment.start, segment.end)]
    assert times == sorted(times)
    assert all(0 <= time <= 3 for time in times)


def with_nan(at: int) -> NDArray[np.float32]:
    samples = (tone() / 32768).astype(np.float32)
    samples[at] = np.nan
    return samples


# where the source is an array or bytes as they are, the name is the one that messages give it
UNUSABLE: dict[str, tuple[str, Any, str]] = {
    "missing": ("missing.wav", None, "no such file"),
    "empty": ("empty.wav", b"", "the file is empty"),
    "header cut": ("cut.wav", wav(tone()[None])[:30], "not an audio file"),
    "index cut": ("cut.mp4", film(tone())[:3000], "not an audio file"),
    "text": ("letter.mp3", b"It was the best of times.\n" * 50, "not an audio file"),
    "no samples": ("nothing.wav", wav(np.zeros((1, 0), np.int16)), "no audio samples"),
    "silent film": ("silent.mp4", film(None), "no audio track"),
    "NaN": ("broken.wav", floats(with_nan(0)), "NaN"),
    "NaN further on": ("broken.wav", floats(with_nan(RATE + 5)), "NaN"),
    "array of nothing": ("<array>", np.zeros(0), "no audio samples"),
    "array of NaN": ("<array>", np.full(RATE, np.nan), "NaN"),
    "array with a NaN": ("<array>", with_nan(RATE + 5), "NaN"),
    "no bytes": ("<bytes>", b"", "empty"),
}


@pytest.mark.parametrize("listen", [False, True], ids=["all", "vad"])
@pytest.mark.parametrize(("name", "source", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_cannot_be_used_is_one_error_that_names_it(
    seeded: Transcriber,
    expected: Transcript,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    source: Any,
    message: str,
    listen: bool,
) -> None:
    rate = RATE if isinstance(source, np.ndarray) else None
    if not name.startswith("<"):
        if source is not None:
            (tmp_path / name).write_bytes(source)
        source = tmp_path / name
    with caplog.at_level(logging.WARNING), pytest.raises(InputError) as caught:
        seeded(source, sample_rate=rate, vad=listen, **OPTIONS)
    said = str(caught.value)
    assert name in said
    assert message in said
    assert "\n" not in said
    assert caplog.records == []
    # the transcriber is none the worse for it
    assert seeded(tone(), sample_rate=RATE, **OPTIONS) == expected


def titled(title: bytes) -> bytes:
    """A WAV file of two seconds, called so."""
    body = wav(tone()[None])[8:]
    body += struct.pack("<4sI4s4sI", b"LIST", 12 + len(title), b"INFO", b"INAM", len(title)) + title
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def test_how_long_a_file_lasts(tmp_path: Path) -> None:
    """A title in Latin-1 is no error, and a playlist does not tell how long what it names is."""
    file, playlist = tmp_path / "song.wav", tmp_path / "list.txt"
    file.write_bytes(titled("Canção".encode("latin1")))
    assert duration(file) == pytest.approx(2, abs=0.01)
    playlist.write_text(f"ffconcat version 1.0\nfile {file.name}\nduration 2\n")
    assert duration(playlist) is None
    assert duration(tmp_path) is duration(tmp_path / "missing.wav") is None


def test_a_pipe_is_left_to_who_reads_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with os.fdopen(os.open(pipe, os.O_RDWR), "r+b", buffering=0) as both:
        both.write(wav(tone()[None])[:60_000])
        assert duration(pipe) is None
        assert both.read(4) == b"RIFF"


def wavpack(samples: NDArray[np.float32]) -> bytes:
    """A codec that is not plain PCM and gives back any float, as a decoder of MP3 does where it is damaged."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        sound = out.add_stream("wavpack", rate=RATE, layout="mono", format="fltp")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        for packet in [packet for piece in (frame, None) for packet in sound.encode(piece)]:
            out.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize(("bad", "heard"), [(np.nan, 0), (-np.inf, 0), (1e6, 1), (-50, -1)])
def test_what_a_damaged_codec_decodes_to_is_no_unscaled_file(
    bad: float, heard: float, caplog: pytest.LogCaptureFixture
) -> None:
    samples = np.tile(tone() / np.float32(32_768), 2).astype(np.float32)
    samples[[40_000, 55_000]] = bad
    with caplog.at_level(logging.WARNING, "heedful"):
        found = np.concatenate(list(read_audio(wavpack(samples))))
    samples[[40_000, 55_000]] = heard
    np.testing.assert_array_equal(found, samples)
    (record,) = caplog.records
    assert record.getMessage().startswith("<bytes>: damaged at 2.5 s (samples far beyond full scale)")


class Failing(io.BytesIO):
    """A file on a disk that fails from some byte on."""

    name = "talk.mp4"

    def __init__(self, data: bytes, sound: int) -> None:
        super().__init__(data)
        self.sound = sound

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() + (size or 0) > self.sound:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(size)


@pytest.mark.parametrize("sound", [0, 100, 80_000], ids=["opened", "probed", "decoded"])
def test_a_disk_that_fails_is_one_error_that_names_the_file(sound: int) -> None:
    with pytest.raises(InputError, match=r"^talk\.mp4: cannot be read \(Input/output error\)$"):
        list(read_audio(Failing(wav(np.zeros((1, 30 * RATE), np.int16)), sound)))


class Full(io.BytesIO):
    def write(self, data: Any, /) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_no_room_for_what_cannot_seek_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    receiving, sending = os.pipe()
    os.write(sending, wav(tone()[None])[:1000])
    os.close(sending)
    with (
        os.fdopen(receiving, "rb") as source,
        pytest.raises(InputError, match=r"^<file>: cannot be copied .*No space left.* TMPDIR"),
    ):
        list(read_audio(source))


def test_three_hours_in_constant_memory(
    seeded: Transcriber, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: Callable[[], int]
) -> None:
    """A sparse file: silence, and half a second of noise in the middle of every ten minutes."""
    seconds, path = 3 * 3600, tmp_path / "hours.wav"
    bursts = range(300, seconds, 600)
    noise = np.random.default_rng(0).integers(-8000, 8000, RATE // 2).astype("<i2").tobytes()
    with path.open("wb") as file:
        form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
        size = 2 * RATE * seconds
        file.write(struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + form + struct.pack("<4sI", b"data", size))
        for burst in bursts:
            file.seek(44 + 2 * RATE * burst)
            file.write(noise)
        file.truncate(44 + size)
    # the detector itself takes half a minute for three hours
    monkeypatch.setattr(vad, "detector", lambda: lambda frame: float(np.abs(frame).max() > 0.05))
    transcription = seeded.stream(path, vad=True, batch=2, **OPTIONS)
    heard, memory = [], []
    for segment in transcription:
        heard.append(segment.seek)
        memory.append(resident())
    assert transcription.duration == seconds
    assert sorted(set(heard)) == pytest.approx([burst - 0.2 for burst in bursts], abs=0.1)
    # ten minutes of samples alone would be 38 MB
    assert max(*memory, resident()) - memory[0] < 20e6
