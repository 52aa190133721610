"""Transcription of real speech with real weights, and of anything else that is passed in."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jiwer
import numpy as np
import pytest
from numpy.typing import NDArray
from whisper_normalizer.english import EnglishTextNormalizer

from heedful.runtime import DeviceError, InputError, Transcriber, Transcript, load
from heedful.runtime.engine.decoder import Wanted
from heedful.runtime.engine.search import Limits
from heedful.runtime.speech.audio import read_audio

DICKENS = """It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of
foolishness, it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season
of Darkness, it was the spring of hope, it was the winter of despair, we had everything before us, we had nothing before
us, we were all going direct to Heaven, we were all going direct the other way. In short, the period was so far like the
present period, that some of its noisiest authorities insisted on its being received, for good or for evil, in the
superlative degree of comparison only."""

normalize = EnglishTextNormalizer()


@pytest.fixture(scope="module")
def real(tiny_en_bundle: Callable[[str], Path]) -> Transcriber:
    transcriber: Transcriber = load(tiny_en_bundle("int8"), "cpu")
    return transcriber


@pytest.fixture(scope="module")
def seeded(seeded_bundle: Path) -> Transcriber:
    transcriber: Transcriber = load(seeded_bundle, "cpu")
    return transcriber


@pytest.fixture(scope="module")
def spoken(two_cities: Path) -> NDArray[np.float32]:
    return np.concatenate(list(read_audio(two_cities)))


def check_times(transcript: Transcript) -> None:
    end = 0.0
    for segment in transcript.segments:
        assert end <= segment.start <= segment.end <= transcript.duration + 1e-3
        end = segment.end
        last = segment.start
        for word in segment.words or ():
            assert last <= word.start <= word.end <= segment.end
            last = word.end


@pytest.mark.network
@pytest.mark.parametrize("beams", [1, 5])
def test_real_speech_is_transcribed(real: Transcriber, two_cities: Path, beams: int) -> None:
    transcript = real(two_cities, beams=beams)
    assert jiwer.wer(normalize(DICKENS), normalize(transcript.text)) <= 0.05
    assert transcript.duration == pytest.approx(44.374, abs=0.01)
    check_times(transcript)


@pytest.mark.network
@pytest.mark.parametrize("timestamps", [True, False])
@pytest.mark.parametrize("beams", [1, 5])
def test_rules_in_the_graph_are_those_of_the_host(
    real: Transcriber, two_cities: Path, beams: int, timestamps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = real(two_cities, beams=beams, timestamps=timestamps)
    # all logits are asked for, so that the host applies the rules
    monkeypatch.setattr(Limits, "wanted", lambda limits, best, texts: Wanted())
    expected = real(two_cities, beams=beams, timestamps=timestamps)
    assert [(one.start, one.end, one.text) for one in found.segments] == [
        (one.start, one.end, one.text) for one in expected.segments
    ]
    # the graph leaves out what is never written before it looks at the likeliest again
    assert [one.avg_logprob for one in found.segments] == pytest.approx(
        [one.avg_logprob for one in expected.segments], abs=1e-4
    )


@pytest.mark.network
@pytest.mark.parametrize("beams", [1, 3])
def test_side_by_side_is_one_after_another(real: Transcriber, two_cities: Path, beams: int) -> None:
    alone = real(two_cities, vad=True, beams=beams, words=True)
    assert real(two_cities, batch=4, beams=beams, words=True) == alone
    assert jiwer.wer(normalize(DICKENS), normalize(alone.text)) <= 0.05


@pytest.mark.network
def test_words_are_timed_without_changing_the_text(real: Transcriber, two_cities: Path) -> None:
    plain, timed = (real(two_cities, beams=2, words=words) for words in (False, True))
    assert timed.text == plain.text
    check_times(timed)
    assert all("".join(word.text for word in segment.words or ()) == segment.text for segment in timed.segments)
    assert all(segment.words is None for segment in plain.segments)


@pytest.mark.network
def test_every_kind_of_input_gives_the_same(real: Transcriber, two_cities: Path) -> None:
    expected = real(two_cities, beams=1).text
    assert real(two_cities.read_bytes(), beams=1).text == expected
    with two_cities.open("rb") as file:
        assert real(file, beams=1).text == expected


@pytest.mark.network
def test_an_array_with_its_rate(real: Transcriber, spoken: NDArray[np.float32]) -> None:
    text = real(spoken[: 16_000 * 10], sample_rate=16_000, beams=1).text
    assert normalize(text).startswith("it was the best of times")


@pytest.mark.network
def test_segments_come_before_the_end_is_read(real: Transcriber, spoken: NDArray[np.float32]) -> None:
    transcription = real.stream(np.tile(spoken, 3), sample_rate=16_000, beams=1)
    next(iter(transcription))
    assert transcription.duration < 40


@pytest.mark.network
def test_silence_has_no_text(real: Transcriber) -> None:
    silence = np.zeros(16_000 * 3, np.float32)
    assert real(silence, sample_rate=16_000, vad=True).segments == ()


def noise(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.1, round(16_000 * seconds)).astype(np.float32)


def test_samples_depend_on_the_seed_alone(seeded: Transcriber) -> None:
    options = {"temperatures": (0.8,), "language": "en", "best_of": 3}
    first, again, other = (seeded(noise(3), sample_rate=16_000, seed=seed, **options) for seed in (1, 1, 2))
    assert first == again
    assert first.segments != other.segments


def test_the_language_is_detected(seeded: Transcriber) -> None:
    transcript = seeded(noise(1), sample_rate=16_000, temperatures=(0.0,))
    assert transcript.language in {"en", "pt"}
    assert 0.5 <= transcript.language_probability <= 1


def test_windows_follow_one_another_to_the_end(seeded: Transcriber) -> None:
    transcript = seeded(noise(5.5), sample_rate=16_000, temperatures=(0.0,), language="en", beams=1)
    check_times(transcript)
    assert transcript.duration == 5.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "tlh"}, "unknown language 'tlh'.*en, pt"),
        ({"beams": 0}, "beams"),
        ({"beams": 2.5}, "beams"),
        ({"task": "sing"}, "unknown task 'sing'"),
        *[
            ({"temperatures": value}, "temperatures must be one or more")
            for value in ((), (float("nan"),), 0.2, "0", ["0"])
        ],
        ({"batch": 4, "vad": False}, "vad"),
        ({"beam_size": 5}, "unknown option 'beam_size'"),
        ({"patience": 0}, "patience must be above 0"),
        *[({name: "1"}, f"{name} must be a number") for name in ("patience", "max_initial_timestamp")],
        *[
            ({"length_penalty": value}, "length_penalty must be a number from -50 to 50")
            for value in (float("inf"), 51, "1")
        ],
        *[
            ({f"{name}_threshold": "1"}, f"{name}_threshold must be")
            for name in ("compression_ratio", "logprob", "no_speech")
        ],
        ({"max_initial_timestamp": -0.1}, "max_initial_timestamp must be at least 0"),
        *[({name: None}, f"{name} must be a bool") for name in ("condition_on_previous_text", "timestamps", "words")],
        *[({name: ["hi"]}, f"{name} must be a str") for name in ("language", "initial_prompt", "hotwords")],
        ({"initial_prompt": "hi \ud83d"}, r"initial_prompt has half of a character, '\\ud83d' at 3"),
        ({"vad": "yes"}, "vad must be True, False or VadOptions"),
        *[({"seed": value}, "seed must be a whole number from 0") for value in (-1, 0.5, None)],
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_option_that_cannot_be_is_named(seeded: Transcriber, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        seeded(noise(1), sample_rate=16_000, **options)


def test_audio_that_cannot_be_is_named(seeded: Transcriber, tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.mp3").write_text("not audio")
    for source in (tmp_path / "missing.wav", tmp_path / "empty.wav", tmp_path / "text.mp3", tmp_path):
        with pytest.raises(InputError, match=source.name):
            seeded(source)
    with pytest.raises(InputError):
        seeded(np.full(16_000, np.nan, np.float32), sample_rate=16_000)


def lacking_for_cuda() -> str:
    """What this machine lacks for CUDA, found out without the code that is tested; "" if nothing."""
    listing = shutil.which("nvidia-smi")
    if listing is None or b"GPU" not in subprocess.run([listing, "-L"], capture_output=True, check=False).stdout:
        return "nvidia-smi lists no GPU"
    found = {name for name in ("onnxruntime-gpu", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13") if installed(name)}
    return "" if len(found) > 1 else "the extra 'cuda' is not installed"


def installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def test_cuda_is_had_or_refused(seeded_bundle: Path) -> None:
    if not lacking_for_cuda():
        assert load(seeded_bundle, "auto").device == "cuda"
        return
    with pytest.raises(DeviceError, match="device 'cuda' was asked for, but "):
        load(seeded_bundle, "cuda")
    assert load(seeded_bundle, "auto").device == "cpu"


@pytest.mark.cuda
def test_cuda_transcribes(seeded_bundle: Path, seeded: Transcriber) -> None:
    if lacking := lacking_for_cuda():
        pytest.skip(lacking)
    options = {"temperatures": (0.0,), "language": "en"}
    found = load(seeded_bundle, "cuda")(noise(3), sample_rate=16_000, **options)
    assert found.text == seeded(noise(3), sample_rate=16_000, **options).text


def test_silence_in_constant_memory(seeded: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    def silence(source: object, rate: object) -> Iterator[NDArray[np.float32]]:
        return (np.zeros(16_000, np.float32) for _ in range(300))

    monkeypatch.setattr("heedful.runtime.speech.transcriber.read_audio", silence)
    tracemalloc.start()
    try:
        transcript = seeded("silence", vad=True, language="en")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert transcript.duration == 300
    assert transcript.segments == ()
    assert peak < 10e6  # the samples alone are 19 MB
