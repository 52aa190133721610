"""Every published size of Whisper is a configuration that is read, and a model of the right number of weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from heedful.export.checkpoint import Checkpoint
from heedful.export.whisper import read_config
from heedful.models.text import TokenDecoder
from heedful.models.whisper import WhisperConfig, WhisperEncoder

hf: Any = transformers


def published(width: int, layers: int, decoder_layers: int, vocabulary: int = 51865, mels: int = 80) -> dict[str, int]:
    return {"d_model": width, "encoder_attention_heads": width // 64, "decoder_attention_heads": width // 64,
            "encoder_ffn_dim": 4 * width, "decoder_ffn_dim": 4 * width, "encoder_layers": layers,
            "decoder_layers": decoder_layers, "num_mel_bins": mels, "vocab_size": vocabulary}  # fmt: skip


PUBLISHED = {
    "tiny.en": published(384, 4, 4, 51864),
    "tiny": published(384, 4, 4),
    "base": published(512, 6, 6),
    "small": published(768, 12, 12),
    "medium": published(1024, 24, 24),
    "large-v2": published(1280, 32, 32),
    "large-v3": published(1280, 32, 32, 51866, mels=128),
    "large-v3-turbo": published(1280, 32, 4, 51866, mels=128),
    "distil-large-v3": published(1280, 32, 2, 51866, mels=128),
    "distil-small.en": published(768, 12, 4, 51864),
}


@pytest.mark.parametrize("sizes", PUBLISHED.values(), ids=PUBLISHED)
def test_published_sizes(sizes: dict[str, int]) -> None:
    """As many weights as in transformers, and a bias for the keys of each attention, which Whisper does without."""
    theirs = hf.WhisperConfig(**sizes)
    config = read_config(Checkpoint(Path(), "made up", "huggingface", theirs.to_dict(), {}, {}, {}, Path(), None))
    width, heads, layers = sizes["d_model"], sizes["encoder_attention_heads"], sizes["encoder_layers"]
    assert config == WhisperConfig(
        sizes["vocab_size"], width, layers, sizes["decoder_layers"], heads, heads, 4 * width, 4 * width,
        sizes["num_mel_bins"],
    )  # fmt: skip
    assert config.samples == 30 * 16_000
    with torch.device("meta"):
        parts = [WhisperEncoder(config), TokenDecoder(config.decoder)]
        expected = hf.WhisperForConditionalGeneration(theirs).num_parameters()
    count = sum(parameter.numel() for part in parts for parameter in part.parameters())
    assert count == expected + width * (config.encoder_layers + 2 * config.decoder_layers)
