"""Audio in: files made with FFmpeg or the wave module, arrays with numpy; what comes out is measured in plain numpy."""

import io
import logging
import os
import struct
import threading
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from heedful.runtime.errors import InputError
from heedful.runtime.speech.audio import SAMPLE_RATE, Source, describe, read_audio

Samples = NDArray[np.float64]


def tone(rate: int, seconds: float = 2.0, hertz: float = 440.0, peak: float = 0.5) -> Samples:
    return peak * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def plain_wav(channels: NDArray[Any], rate: int) -> bytes:
    """16-bit WAV of (channels, samples); its header does not say where a channel belongs."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(len(channels))
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.round(channels.T * 32768).clip(-32768, 32767).astype("<i2").tobytes())
    return file.getvalue()


def encoded(
    channels: NDArray[Any], rate: int, container: str, codec: str, sample_format: str, layout: str, video: bool = False
) -> bytes:
    """(channels, samples) through one of FFmpeg's encoders."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        picture = out.add_stream("mpeg4", rate=5) if video else None
        sound = out.add_stream(codec, rate=rate, layout=layout, format=sample_format)
        assert isinstance(sound, av.AudioStream)
        if picture is not None:
            picture.width = picture.height = 32
            image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
            for packet in [*picture.encode(image), *picture.encode(None)]:
                out.mux(packet)
        packed = np.ascontiguousarray(channels.T.reshape(1, -1), np.float32)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
        frame.sample_rate = rate
        converter = av.AudioResampler(sample_format, layout, rate, frame_size=sound.frame_size or 1024)
        for piece in [*converter.resample(frame), *converter.resample(None), None]:
            for packet in sound.encode(piece):
                out.mux(packet)
    return file.getvalue()


def read(source: Source, sample_rate: int | None = None) -> NDArray[np.float32]:
    return np.concatenate(list(read_audio(source, sample_rate)))


def peak_at(samples: NDArray[Any], hertz: float) -> float:
    """Amplitude of that frequency, away from the ends."""
    middle = samples[2000:-2000]
    wheel = np.exp(-2j * np.pi * hertz * np.arange(len(middle)) / SAMPLE_RATE)
    return float(2 * abs(np.mean(middle * wheel)))


def loudest_frequency(samples: NDArray[Any]) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * SAMPLE_RATE / len(samples))


class Unseekable:
    """The least a stream can be."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)


@pytest.mark.parametrize(
    ("container", "codec", "sample_format", "layout", "rate", "tolerance"),
    [
        ("wav", "pcm_s16le", "s16", "stereo", 8_000, 0.002),
        ("wav", "pcm_u8", "u8", "mono", 11_025, 0.02),
        ("wav", "pcm_s24le", "s32", "stereo", 44_100, 0.002),
        ("wav", "pcm_f32le", "flt", "7.1", 96_000, 0.002),
        ("aiff", "pcm_s16be", "s16", "mono", 22_050, 0.002),
        ("flac", "flac", "s16", "mono", 96_000, 0.002),
        ("flac", "flac", "s16", "5.1", 48_000, 0.002),
        ("mp3", "libmp3lame", "fltp", "stereo", 44_100, 0.06),
        ("ogg", "libopus", "flt", "stereo", 48_000, 0.06),
        ("ipod", "aac", "fltp", "mono", 44_100, 0.06),
    ],
)
def test_files_keep_pitch_loudness_and_length(
    container: str, codec: str, sample_format: str, layout: str, rate: int, tolerance: float
) -> None:
    channels = np.repeat(tone(rate)[None], av.AudioLayout(layout).nb_channels, axis=0)
    samples = read(encoded(channels, rate, container, codec, sample_format, layout))
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(2 * SAMPLE_RATE, abs=2500)
    assert loudest_frequency(samples) == pytest.approx(440, abs=1)
    assert peak_at(samples, 440) == pytest.approx(0.5, rel=tolerance)


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_video_gives_its_sound(container: str) -> None:
    samples = read(encoded(tone(44_100)[None], 44_100, container, "aac", "fltp", "mono", video=True))
    assert loudest_frequency(samples) == pytest.approx(440, abs=1)


def test_16_khz_mono_comes_through_untouched() -> None:
    levels = np.random.default_rng(0).integers(-32768, 32768, 40_000)
    samples = read(plain_wav(levels[None] / 32768, SAMPLE_RATE))
    np.testing.assert_array_equal(samples, levels / 32768)


@pytest.mark.parametrize("channels", [1, 2, 3, 8, 9, 16])
@pytest.mark.parametrize("rate", [8_000, 96_000])
def test_plain_wav_weighs_every_channel_alike(channels: int, rate: int) -> None:
    """One tone to a channel: none is lost, as the one FFmpeg takes for the subwoofer would be."""
    tones = [300.0 + 200 * number for number in range(channels)]
    samples = read(plain_wav(np.stack([tone(rate, hertz=hertz) for hertz in tones]), rate))
    assert len(samples) == pytest.approx(2 * SAMPLE_RATE, abs=32)
    for hertz in tones:
        assert peak_at(samples, hertz) == pytest.approx(0.5 / channels, rel=0.03)


def test_surround_is_mixed_with_the_usual_weights() -> None:
    """ITU-R BS.775: centre 1, left and right 0.707, surrounds 0.5, no subwoofer; together 1."""
    tones = [300.0 + 200 * number for number in range(6)]
    channels = np.stack([tone(48_000, hertz=hertz) for hertz in tones])
    samples = read(encoded(channels, 48_000, "flac", "flac", "s16", "5.1"))
    weights = np.array([0.5**0.5, 0.5**0.5, 1, 0, 0.5, 0.5])
    expected = 0.5 * weights / weights.sum()
    np.testing.assert_allclose([peak_at(samples, hertz) for hertz in tones], expected, atol=2e-3)


def test_loud_stereo_does_not_clip() -> None:
    samples = read(plain_wav(np.repeat(tone(16_000, peak=0.99)[None], 2, axis=0), 16_000))
    np.testing.assert_allclose(samples, tone(16_000, peak=0.99), atol=1e-4)


def test_overshoot_is_clipped() -> None:
    samples = read(np.array([0.5, 1.5, -2.0, -0.25]), 16_000)
    np.testing.assert_array_equal(samples, [0.5, 1, -1, -0.25])


def test_every_kind_of_source_gives_the_same(tmp_path: Path) -> None:
    data = encoded(tone(44_100)[None], 44_100, "ipod", "aac", "fltp", "mono")
    assert data.index(b"moov") > data.index(b"mdat"), "the index must stand at the end for this to be hard"
    path = tmp_path / "talk.m4a"
    path.write_bytes(data)
    at_its_end = io.BytesIO(data)
    at_its_end.seek(0, os.SEEK_END)
    expected = read(data)
    with path.open("rb") as file, path.open("rb", buffering=0) as raw:
        for source in (path, str(path), file, raw, at_its_end, Unseekable(data)):
            np.testing.assert_array_equal(read(source), expected)  # type: ignore[arg-type]
        assert not file.closed
        assert not at_its_end.closed


def test_a_pipe_can_be_read() -> None:
    data = plain_wav(tone(16_000)[None], 16_000)
    receiving, sending = os.pipe()

    def send() -> None:
        with os.fdopen(sending, "wb") as out:
            out.write(data)

    sender = threading.Thread(target=send)
    sender.start()
    with os.fdopen(receiving, "rb") as source:
        np.testing.assert_array_equal(read(source), read(data))
    sender.join()


def test_a_file_is_decoded_as_it_is_read() -> None:
    class Counting(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            self.taken += len(data)
            return data

    data = plain_wav(tone(16_000, seconds=60)[None], 16_000)
    source = Counting(data)
    chunks = read_audio(source)
    assert source.taken == 0
    next(chunks)
    assert source.taken < len(data) / 4


@pytest.mark.parametrize("source", ["array", "file"])
def test_chunks_are_at_most_a_second(source: str) -> None:
    samples = tone(48_000, seconds=5.5)
    chunks = list(read_audio(samples, 48_000) if source == "array" else read_audio(plain_wav(samples[None], 48_000)))
    assert max(map(len, chunks)) <= SAMPLE_RATE
    assert sum(map(len, chunks)) == pytest.approx(5.5 * SAMPLE_RATE, abs=16)


INTEGERS: st.SearchStrategy[np.dtype[Any]] = st.sampled_from(["u1", "<i2", ">i2", "<i4", ">i4"]).map(np.dtype)
FLOATS: st.SearchStrategy[np.dtype[Any]] = st.sampled_from(["<f2", "<f4", ">f4", "<f8"]).map(np.dtype)


@settings(max_examples=50)
@given(
    arrays.arrays(INTEGERS, st.integers(1, 400))
    | arrays.arrays(FLOATS, st.integers(1, 400), elements=st.floats(-1, 1, width=16))
)
def test_arrays_are_scaled_to_one(samples: NDArray[Any]) -> None:
    scaled = {
        "u1": lambda: (samples.astype(np.float64) - 128) / 128,
        "i2": lambda: samples / 32768,
        "i4": lambda: samples / 2147483648,
    }.get(samples.dtype.str[1:], lambda: samples.astype(np.float64))()
    np.testing.assert_allclose(read(samples, SAMPLE_RATE), scaled, atol=1e-7)


@settings(max_examples=30)
@given(rate=st.integers(1_000, 200_000), channels=st.integers(1, 4))
def test_arrays_of_any_rate_keep_pitch_and_length(rate: int, channels: int) -> None:
    samples = read(np.repeat(tone(rate, hertz=110)[None], channels, axis=0), rate)
    assert len(samples) == pytest.approx(2 * SAMPLE_RATE, abs=SAMPLE_RATE / rate + 1)
    assert peak_at(samples, 110) == pytest.approx(0.5, rel=0.01)


def test_an_array_and_the_file_of_it_agree() -> None:
    levels = np.round(tone(44_100) * 32768).astype(np.int16)
    np.testing.assert_allclose(read(levels, 44_100), read(plain_wav(levels[None] / 32768, 44_100)), atol=1e-4)


def test_silence_is_audio() -> None:
    np.testing.assert_array_equal(read(np.zeros(20_000), SAMPLE_RATE), np.zeros(20_000))


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "PNG")
    return file.getvalue()


def silent_film() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
        for packet in [*stream.encode(image), *stream.encode(None)]:
            out.mux(packet)
    return file.getvalue()


def of_rate(rate: int) -> bytes:
    data = bytearray(plain_wav(tone(8_000)[None], 8_000))
    data[24:28] = struct.pack("<I", rate)
    return bytes(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"It was the best of times, it was the worst of times.\n" * 50, "not an audio file"),
        (picture, "no audio track"),
        (silent_film, "no audio track"),
        (lambda: plain_wav(np.zeros((1, 0)), 16_000), "no audio samples"),
        (lambda: plain_wav(tone(16_000)[None], 16_000)[:30], "not an audio file"),
        (lambda: encoded(tone(44_100)[None], 44_100, "ipod", "aac", "fltp", "mono")[:-3000], "not an audio file"),
        (lambda: of_rate(1), "sample rate 1 is not"),
        (lambda: of_rate(2**31 - 1), "sample rate 2147483647 is not"),
    ],
    ids=["text", "picture", "film", "no samples", "header cut", "index cut", "1 Hz", "2 GHz"],
)
def test_files_that_hold_no_audio_are_refused_by_name(make: Callable[[], bytes], message: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.mp3"
    path.write_bytes(make())
    with pytest.raises(InputError, match=rf"talk\.mp3: .*{message}"):
        next(read_audio(path))


def test_paths_that_cannot_be_read_are_refused_at_the_call(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "private.wav").touch(mode=0)
    with pytest.raises(InputError, match=r"missing\.wav.*no such file"):
        read_audio(tmp_path / "missing.wav")
    for address in ("http://example.org/talk.mp3", "data:audio/mpeg;base64,SUQz"):
        with pytest.raises(InputError, match=f"^{address}: an address; download it first and pass the file"):
            read_audio(address)
    with pytest.raises(InputError, match="null byte; name an audio file"):
        read_audio("talk\0.mp3")
    with pytest.raises(InputError, match="is a folder"):
        read_audio(str(tmp_path))
    with pytest.raises(InputError, match=r"empty\.wav: the file is empty"):
        read_audio(tmp_path / "empty.wav")
    if os.geteuid():  # nothing is forbidden to root
        with pytest.raises(InputError, match=r"private\.wav.*no permission"):
            read_audio(tmp_path / "private.wav")


@pytest.mark.parametrize(
    ("source", "rate", "message"),
    [
        (np.zeros(100), None, "needs sample_rate"),
        (np.zeros(100), 0, "sample rate 0 is not"),
        (np.zeros(100), -16_000, "sample rate -16000 is not"),
        (np.zeros(100), 16_000.0, "sample rate 16000.0 is not"),
        (np.zeros(0), 16_000, "no audio samples"),
        (np.zeros((2, 0)), 16_000, "no audio samples"),
        (np.float64(0), 16_000, "is not audio"),
        (np.zeros((1, 1, 100)), 16_000, "neither"),
        (np.zeros((100, 2)), 16_000, "transpose"),
        (np.zeros(100, np.int64), 16_000, "type int64"),
        (np.zeros(100, bool), 16_000, "type bool"),
        (np.zeros(100, complex), 16_000, "type complex128"),
        (np.append(np.zeros(100_000), np.nan), 16_000, "NaN or infinite"),
        (np.append(np.zeros(100_000), -np.inf), 16_000, "NaN or infinite"),
        (tone(16_000) * 32768, 16_000, "scale them"),
        (b"", None, "empty"),
        (b"RIFF", 16_000, "leave sample_rate out"),
        (io.StringIO("text"), None, "binary mode"),
        ([0.0, 0.1], 16_000, "list is not audio"),
        (None, None, "NoneType is not audio"),
    ],
)
def test_what_cannot_be_audio_is_refused_at_the_call(source: Any, rate: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_audio(source, rate)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_float_file_with_bad_samples_is_refused(bad: float) -> None:
    samples = tone(16_000)
    samples[25_000] = bad
    chunks = read_audio(encoded(samples[None], 16_000, "wav", "pcm_f32le", "flt", "mono"))
    next(chunks)
    with pytest.raises(InputError, match="<bytes>: samples are NaN or infinite"):
        next(chunks)


def test_a_playlist_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret.wav").write_bytes(plain_wav(tone(16_000)[None], 16_000))
    playlist = b"ffconcat version 1.0\nfile secret.wav\n"
    with av.open(io.BytesIO(playlist)) as unguarded:
        assert unguarded.format.name == "concat", "FFmpeg itself must follow the playlist for this to mean anything"
    with pytest.raises(InputError, match="not an audio file"):
        next(read_audio(playlist))


def test_a_file_cut_short_gives_what_it_holds() -> None:
    data = plain_wav(tone(16_000)[None], 16_000)
    np.testing.assert_allclose(read(data[: len(data) // 2]), tone(16_000)[:15_989], atol=1e-4)


def test_damage_is_skipped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray(encoded(tone(16_000, seconds=8)[None], 16_000, "mp3", "libmp3lame", "fltp", "mono"))
    for damaged in (len(data) // 2, len(data) * 3 // 4):
        data[damaged : damaged + 1500] = np.random.default_rng(0).bytes(1500)
    with caplog.at_level(logging.WARNING, "heedful"):
        samples = read(bytes(data))
    assert 6.5 < len(samples) / SAMPLE_RATE < 8.2
    (record,) = caplog.records
    assert record.name == "heedful"
    second = float(record.getMessage().split("damaged at ")[1].split(" s")[0])
    assert record.getMessage().startswith("<bytes>: ")
    assert second == pytest.approx(4, abs=0.3)


def test_sound_that_changes_format_on_the_way_is_read_whole() -> None:
    mono = encoded(tone(44_100)[None], 44_100, "mp3", "libmp3lame", "fltp", "mono")
    stereo = encoded(np.repeat(tone(48_000)[None], 2, axis=0), 48_000, "mp3", "libmp3lame", "fltp", "stereo")
    samples = read(mono + stereo)
    assert len(samples) == pytest.approx(4 * SAMPLE_RATE, abs=4000)
    assert loudest_frequency(samples[-SAMPLE_RATE:]) == pytest.approx(440, abs=2)


def test_sources_have_short_names(tmp_path: Path) -> None:
    with (tmp_path / "open.wav").open("wb") as file:
        assert describe(file) == "open.wav"
    assert describe("/some/where/talk.mp3") == "talk.mp3"
    assert describe(tmp_path / "talk.mp3") == "talk.mp3"
    assert describe(b"RIFF") == "<bytes>"
    assert describe(io.BytesIO()) == "<file>"
    assert describe(np.zeros(1)) == "<array>"
