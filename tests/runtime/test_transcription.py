"""What a transcription makes of its windows, by a model of random weights or texts that are made up."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from heedful.runtime import InputError, Transcriber, load
from heedful.runtime.engine.generate import Job
from heedful.runtime.engine.search import Hypothesis
from heedful.runtime.speech import vad
from heedful.runtime.speech.model import SpeechModel
from heedful.runtime.speech.tokens import SpeechTokens
from heedful.runtime.speech.windows import Decoded, Window, WindowDecoder

RATE = 16_000

Generate = Callable[[Sequence[Job]], None]


@pytest.fixture(scope="module")
def seeded(seeded_bundle: Path) -> Transcriber:
    """Its windows last a second."""
    transcriber: Transcriber = load(seeded_bundle, "cpu")
    return transcriber


def noise(seconds: float) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 0.1, round(RATE * seconds)).astype(np.float32)


def test_what_is_cut_off_is_heard_again_and_not_in_the_prompt(
    seeded: Transcriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    special = seeded.model.tokens.special
    begin, middle, end = (special.first_timestamp + frame for frame in (0, 20, 50))
    said = [begin, *b"one", middle]
    texts = [[*said, middle, *b"tw"], [begin, *b"two", end]]
    prompts = []

    def decode(self: WindowDecoder, window: Window, generate: Generate) -> Decoded:
        prompts.append(window.prompt)
        tokens = tuple(texts[len(prompts) - 1])
        return Decoded(Hypothesis(tokens, -1.0, -1.0, ended=True), "", 0.0, 0.0, 1.0, 0.0, 0.0)

    monkeypatch.setattr(WindowDecoder, "decode", decode)
    transcript = seeded(noise(1.4), sample_rate=RATE, language="en")
    assert [(segment.start, segment.end) for segment in transcript.segments] == [(0.0, 0.4), (0.4, 1.4)]
    header = prompts[0]
    assert prompts[1] == [special.previous, *said, *header]


@pytest.mark.parametrize(("temperatures", "trusted"), [((0.0,), True), ((0.0, 0.4), True), ((0.0, 1.0), False)])
def test_a_text_that_failed_up_to_a_high_temperature_is_no_prompt(
    seeded: Transcriber, temperatures: tuple[float, ...], trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the text of temperature 0 is taken in the end."""
    decode, prompts = WindowDecoder.decode, []

    def recorded(self: WindowDecoder, window: Window, generate: Generate) -> Decoded:
        prompts.append(window.prompt)
        return decode(self, window, generate)

    monkeypatch.setattr(WindowDecoder, "decode", recorded)
    monkeypatch.setattr(WindowDecoder, "_accepts", lambda self, decoded: False)
    monkeypatch.setattr(WindowDecoder, "_best", lambda self, tries: tries[0])
    seeded(noise(2), sample_rate=RATE, language="en", temperatures=temperatures, timestamps=False, beams=1)
    assert (len(prompts[1]) > len(prompts[0])) == trusted


def test_words_of_a_translation_are_english(seeded: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    words, languages = SpeechTokens.words, []

    def recorded(self: SpeechTokens, tokens: Sequence[int], language: str) -> list[tuple[str, list[int]]]:
        languages.append(language)
        return words(self, tokens, language)

    monkeypatch.setattr(SpeechTokens, "words", recorded)
    for task in ("transcribe", "translate"):
        seeded(noise(1), sample_rate=RATE, language="pt", task=task, words=True, temperatures=(0.0,))
    assert languages == ["pt", "en"]


@pytest.mark.parametrize("batch", [1, 2])
def test_the_language_is_that_of_all_that_opens_a_recording(
    seeded: Transcriber, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cough of half a second says little: what comes after a long silence is heard too."""
    monkeypatch.setattr(vad, "detector", lambda: lambda frame: float(np.abs(frame).max() > 0.05))
    encode = SpeechModel.encode
    heard: list[int] = []

    def recorded(self: SpeechModel, decoder: object, waveforms: dict[int, NDArray[np.float32]]) -> None:
        heard.extend(len(waveform) for waveform in waveforms.values())
        encode(self, decoder, waveforms)  # type: ignore[arg-type]

    monkeypatch.setattr(SpeechModel, "encode", recorded)
    sound = np.concatenate([noise(0.5), np.zeros(6 * RATE, np.float32), noise(0.5), np.zeros(RATE, np.float32)])
    options = {"vad": True, "batch": batch, "temperatures": (0.0,)}
    transcript = seeded(sound, sample_rate=RATE, **options)
    assert transcript.language in {"en", "pt"}
    assert heard[0] == RATE
    assert len(heard) == 3
    assert max(heard[1:]) < RATE
    heard.clear()
    seeded(sound, sample_rate=RATE, language="en", **options)
    assert len(heard) == 2


def test_a_transcription_is_iterated_over_once(seeded: Transcriber) -> None:
    options = {"sample_rate": RATE, "language": "en", "temperatures": (0.0,)}
    whole = seeded(noise(3), **options).segments  # type: ignore[arg-type]
    transcription = seeded.stream(noise(3), **options)  # type: ignore[arg-type]
    segments = iter(transcription)
    assert [next(segments), *segments] == [*whole]
    with pytest.raises(InputError, match="iterated over once"):
        next(iter(transcription))
