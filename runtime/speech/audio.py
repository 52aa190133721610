"""Audio in: any file, bytes, stream or array becomes mono float32 at 16 kHz, a second at a time."""

import io
import logging
import os
import re
from collections.abc import Iterator
from itertools import chain, groupby
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from heedful.runtime.errors import InputError
from heedful.runtime.home import check_address
from heedful.runtime.speech.media import Damage, File, decoded, opened_media

SAMPLE_RATE = 16_000
"""Samples a second of everything the speech panel computes on."""

Source = File | np.ndarray[Any, Any]

LOG = logging.getLogger("heedful")

# Zero level and full scale of each sample type, by kind and width, in either byte order.
_SCALES = {"u1": (128, 1 << 7), "i2": (0, 1 << 15), "i4": (0, 1 << 31), "f2": (0, 1), "f4": (0, 1), "f8": (0, 1)}
# Floats may overshoot full scale a little; far beyond it they are integers that nobody scaled.
_LOUDEST = 8.0
_RATES = range(1_000, 768_001)
# Layouts that do not say where each channel belongs (plain multichannel WAV), so that FFmpeg could only guess.
_UNPLACED = re.compile(r"\d+ channels|ambisonic.*")


def read_audio(source: Source, sample_rate: int | None = None) -> Iterator[NDArray[np.float32]]:
    """Yield `source` as mono chunks of shape (samples,), float32 in [-1, 1] at 16 kHz, at most a second each.

    `source` is a path, the bytes of a file, a binary file object (read from its beginning and left open; one that
    cannot seek is first copied to a temporary file), or an array of shape (samples,) or (channels, samples) of floats
    in [-1, 1], int16, int32 or uint8. `sample_rate`, in hertz, belongs to an array and to nothing else. A file is
    decoded as a stream, its first audio track only; channels are mixed to one. What a damaged file still gives is
    used, and a warning names the second of the first damage.

    Raises InputError, at the call where that can be seen, else while iterating: nothing there, not audio, no audio
    track, no samples, NaN, infinite or unscaled samples in an array or a file of plain floats, a rate, shape or type
    that cannot be used.
    """
    name = describe(source)
    if isinstance(source, np.ndarray):
        channels = _checked_array(source, name)
        if sample_rate is None:
            raise InputError(f"{name}: an array needs sample_rate, in hertz")
        _check_rate(sample_rate, name)
        return _chunks(_resampled(_array_frames(channels, int(sample_rate)), name), name)
    _check_file(source, name)
    if sample_rate is not None:
        raise InputError(f"{name}: a file states its own sample rate; leave sample_rate out")
    return _chunks(_file_samples(source, name), name)


def describe(source: Source) -> str:
    """A short name of `source` for messages: `talk.mp3`, `<bytes>`, `<array>`, `<file>`."""
    if isinstance(source, np.ndarray):
        return "<array>"
    if isinstance(source, bytes):
        return "<bytes>"
    path = source if isinstance(source, str | os.PathLike) else getattr(source, "name", None)
    if isinstance(path, str | os.PathLike):
        return os.path.basename(os.fspath(path)) or os.fspath(path) or "<empty path>"
    return "<file>"


def _chunks(samples: Iterator[NDArray[np.float32]], name: str) -> Iterator[NDArray[np.float32]]:
    chunk = None
    for chunk in samples:
        yield np.clip(chunk, -1.0, 1.0)
    if chunk is None:
        raise InputError(f"{name}: no audio samples")


def _file_samples(source: File, name: str) -> Iterator[NDArray[np.float32]]:
    damage = Damage()
    with opened_media(source, name) as container:
        samples = _resampled(decoded(container, damage, name), name)
        # plain floats are what somebody stored; of anything else the decoder makes such samples where it is damaged
        if container.streams.audio[0].codec_context.name.startswith("pcm_f"):
            yield from _checked(samples, name)
        else:
            yield from _repaired(samples, damage)
    if damage.what:
        LOG.warning("%s: damaged at %.1f s (%s); using what can be decoded", name, damage.second, damage.what)


def _checked(samples: Iterator[NDArray[np.float32]], name: str) -> Iterator[NDArray[np.float32]]:
    for chunk in samples:
        _check_level(chunk, name)
        yield chunk


def _repaired(samples: Iterator[NDArray[np.float32]], damage: Damage) -> Iterator[NDArray[np.float32]]:
    """`samples` without NaN and infinite ones; the first of those, or of such as no recording has, is `damage`."""
    heard = 0
    for chunk in samples:
        if not _loudest(chunk) <= _LOUDEST:  # NaN neither
            first = int(np.argmin(np.abs(chunk) <= _LOUDEST))
            damage.add((heard + first) / SAMPLE_RATE, "samples far beyond full scale")
            chunk = np.nan_to_num(chunk, nan=0.0, posinf=0.0, neginf=0.0)
        heard += len(chunk)
        yield chunk


def _resampled(frames: Iterator[av.AudioFrame], name: str) -> Iterator[NDArray[np.float32]]:
    """Frames of any format, even one that changes on the way, as float32 (samples,) at 16 kHz."""
    for (_, layout, rate), alike in groupby(frames, lambda frame: (frame.format.name, frame.layout.name, frame.rate)):
        _check_rate(rate, name)
        resampler = av.AudioResampler(
            format="flt",
            layout=None if _UNPLACED.fullmatch(layout) else "mono",
            rate=SAMPLE_RATE,
            frame_size=SAMPLE_RATE,
            # Weights that sum to at most one: for float output FFmpeg would not normalise, and stereo gain 3 dB.
            options={"rematrix_maxval": "1"},
        )
        for frame in chain(alike, [None]):
            for output in resampler.resample(frame):
                channels = output.layout.nb_channels
                samples: NDArray[np.float32] = np.asarray(output.to_ndarray(), np.float32).reshape(-1, channels)
                # the mean of a single channel would be a sixth of the time that reading takes
                yield samples[:, 0] if channels == 1 else samples.mean(axis=1)


def _loudest(samples: NDArray[Any]) -> float:
    return float(max(-samples.min(), samples.max()))


def _check_level(samples: NDArray[Any], name: str) -> None:
    loudest = _loudest(samples)
    if not np.isfinite(loudest):
        raise InputError(f"{name}: samples are NaN or infinite; clean the audio first")
    if loudest > _LOUDEST:
        raise InputError(f"{name}: float samples reach {loudest:.6g}; scale them to [-1, 1]")


def _check_rate(rate: int, name: str) -> None:
    if not isinstance(rate, int | np.integer) or rate not in _RATES:
        raise InputError(f"{name}: sample rate {rate!r} is not a whole number from {_RATES[0]} to {_RATES[-1]} hertz")


def _checked_array(samples: NDArray[Any], name: str) -> NDArray[Any]:
    """`samples` as (channels, samples), or InputError."""
    if samples.dtype.str[1:] not in _SCALES:
        raise InputError(f"{name}: samples of type {samples.dtype}; pass floats, int16, int32 or uint8")
    if samples.ndim not in (1, 2):
        raise InputError(f"{name}: shape {samples.shape} is neither (samples,) nor (channels, samples)")
    if samples.size == 0:
        raise InputError(f"{name}: no audio samples in shape {samples.shape}")
    channels = np.atleast_2d(samples)
    if channels.shape[0] > channels.shape[1]:
        raise InputError(f"{name}: shape {samples.shape} looks like (samples, channels); transpose it")
    if samples.dtype.kind == "f":
        _check_level(samples, name)
    return channels


def _array_frames(channels: NDArray[Any], rate: int) -> Iterator[av.AudioFrame]:
    """Mono frames of a second each from (channels, samples)."""
    zero, full = _SCALES[channels.dtype.str[1:]]
    for start in range(0, channels.shape[1], rate):
        scaled = (channels[:, start : start + rate].astype(np.float32) - np.float32(zero)) / np.float32(full)
        frame = av.AudioFrame.from_ndarray(scaled.mean(axis=0, keepdims=True), format="flt", layout="mono")
        frame.sample_rate = rate
        yield frame


def _check_file(source: File, name: str) -> None:
    if isinstance(source, bytes):
        if not source:
            raise InputError(f"{name}: empty")
    elif isinstance(source, str | os.PathLike):
        _check_path(os.fspath(source), name)
    elif isinstance(source, io.TextIOBase):
        raise InputError(f"{name}: a text file object; open it in binary mode")
    elif not hasattr(source, "read"):
        raise InputError(f"{type(source).__name__} is not audio; pass a path, bytes, a binary file object or an array")


def _check_path(path: str, name: str) -> None:
    try:
        os.stat(path)
    except (OSError, ValueError) as error:
        check_address(path, path)
        reason = getattr(error, "strerror", str(error)).lower()
        raise InputError(f"{path[:1000]!r}: {reason}; name an audio file that can be read") from error
    if os.path.isdir(path):
        raise InputError(f"{path!r} is a folder; name an audio file")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path!r}: no permission to read it")
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        raise InputError(f"{name}: the file is empty")
