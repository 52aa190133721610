"""The log-mel spectrogram, beside transformers' feature extractor and a Fourier transform in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from heedful.models.filterbank import mel_filterbank
from heedful.models.spectrogram import LogMel
from heedful.runtime.speech.audio import SAMPLE_RATE, read_audio

Samples = NDArray[np.float32]
WINDOW = 30 * SAMPLE_RATE
SECONDS = np.arange(WINDOW) / SAMPLE_RATE


def noise(seed: int, level: float, count: int = WINDOW) -> Samples:
    return (level * np.random.default_rng(seed).standard_normal(count)).clip(-1, 1).astype(np.float32)


SIGNALS = {
    "loud noise": noise(0, 0.5),
    "faint noise": noise(1, 1e-4),
    "rising chirp": (0.9 * np.sin(2 * np.pi * (20 + 130 * SECONDS) * SECONDS)).astype(np.float32),
    "tone at a band's centre": (0.3 * np.sin(2 * np.pi * 1000 * SECONDS)).astype(np.float32),
    "silence": np.zeros(WINDOW, np.float32),
    "noise, then zeros": np.pad(noise(2, 0.1, 5 * SAMPLE_RATE + 77), (0, WINDOW - 5 * SAMPLE_RATE - 77)),
    "click": np.eye(1, WINDOW, 12_345, dtype=np.float32)[0],
}


def by_transformers(samples: Samples, mels: int) -> NDArray[np.float32]:
    """(mels, frames)."""
    extractor: Any = transformers.WhisperFeatureExtractor
    features = extractor(feature_size=mels)(samples, sampling_rate=SAMPLE_RATE, return_tensors="np")["input_features"]
    return np.asarray(features[0], np.float32)


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("signal", SIGNALS)
def test_the_spectrogram_is_that_of_transformers(signal: str, mels: int) -> None:
    found = LogMel(mels)(torch.as_tensor(SIGNALS[signal])[None])
    assert found.dtype == torch.float32
    assert found.shape == (1, mels, 3000)
    # a sweeping tone leaves bands 70 dB below its peak, where float32 has few digits left
    tolerance = 5e-4 if signal == "rising chirp" else 1e-4
    np.testing.assert_allclose(found[0].numpy(), by_transformers(SIGNALS[signal], mels), rtol=0, atol=tolerance)


@pytest.mark.parametrize("mels", [80, 128])
def test_the_spectrogram_of_speech_is_that_of_transformers(mels: int, two_cities: Path) -> None:
    samples = np.concatenate(list(read_audio(two_cities)))[:WINDOW]
    found = LogMel(mels)(torch.as_tensor(samples)[None])[0].numpy()
    np.testing.assert_allclose(found, by_transformers(samples, mels), rtol=0, atol=1e-4)


def by_hand(samples: Samples, filters: NDArray[np.float64]) -> NDArray[np.float64]:
    """(mels, frames), a frame at a time, by numpy's Fourier transform in float64."""
    padded = np.pad(samples.astype(np.float64), 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = [padded[at : at + 400] * window for at in range(0, len(samples), 160)]
    power = np.abs(np.fft.rfft(frames)) ** 2
    log = np.log10(np.maximum(power @ filters, 1e-10))
    return np.asarray((np.maximum(log, log.max() - 8) + 4) / 4).T


@settings(max_examples=50)
@given(
    seed=st.integers(0, 2**32 - 1),
    hops=st.integers(2, 60),
    levels=st.lists(st.sampled_from([0.0, 1e-5, 1e-3, 0.1, 0.5]), min_size=1, max_size=3),
)
def test_each_recording_of_a_batch_is_its_own(seed: int, hops: int, levels: list[float]) -> None:
    """Whatever its neighbours and its level, from which the floor is taken."""
    batch = np.stack([noise(seed + i, level, 160 * hops) for i, level in enumerate(levels)])
    found = LogMel(80)(torch.as_tensor(batch)).numpy()
    assert found.shape == (len(levels), 80, hops)
    filters = mel_filterbank(201, 80, SAMPLE_RATE).double().numpy()
    for one, samples in zip(found, batch, strict=True):
        np.testing.assert_allclose(one, by_hand(samples, filters), rtol=0, atol=1e-3)


@pytest.mark.parametrize("hertz", [200, 1000, 3000, 7000])
def test_a_tone_is_loudest_in_the_filter_at_its_pitch(hertz: int) -> None:
    """Slaney's scale: 15 mels up to 1 kHz in equal steps of frequency, 27 mels for each factor of 6.4 above."""
    tone = torch.sin(2 * np.pi * hertz * torch.arange(SAMPLE_RATE) / SAMPLE_RATE)
    loudest = LogMel(80)(tone[None])[0].mean(dim=1).argmax().item()

    def mel(frequency: float) -> float:
        return 15 * frequency / 1000 if frequency < 1000 else 15 + 27 * float(np.log(frequency / 1000) / np.log(6.4))

    assert loudest + 1 == pytest.approx(81 * mel(hertz) / mel(8000), abs=1)


def test_the_module_has_no_weights_to_store() -> None:
    module = LogMel(80)
    assert not module.state_dict()
    assert not list(module.parameters())
