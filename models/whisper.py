"""Whisper: speech to text, an encoder-decoder over log-mel frames (Radford et al. 2022, arXiv 2212.04356).

Every published size is a `WhisperConfig`: tiny to large-v3, turbo and distil differ in numbers only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heedful.models.attention import visible
from heedful.models.cache import KeyValue
from heedful.models.spectrogram import LogMel
from heedful.models.text import StackConfig, TokenDecoder
from heedful.models.transformer import EncoderLayer, LayerConfig


@dataclass(frozen=True)
class WhisperConfig:
    """Sizes of a Whisper model; `audio_positions` are encoder frames of 20 ms, `text_positions` tokens."""

    vocabulary: int
    width: int
    encoder_layers: int
    decoder_layers: int
    encoder_heads: int
    decoder_heads: int
    encoder_inner: int
    decoder_inner: int
    mels: int = 80
    audio_positions: int = 1500
    text_positions: int = 448

    @property
    def samples(self) -> int:
        """Samples of a window of audio at 16 kHz: a frame is two hops of 160, after the stride of a convolution."""
        return self.audio_positions * 2 * 160

    @property
    def decoder(self) -> StackConfig:
        """The stack that writes the text."""
        layer = LayerConfig(self.width, self.decoder_heads, self.decoder_inner)
        return StackConfig(self.vocabulary, self.decoder_layers, layer, "learned", self.text_positions, final_norm=True)


class WhisperEncoder(nn.Module):
    """Log-mel frames through two convolutions, the second halving their number, and a stack of encoder layers."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.first = nn.Conv1d(config.mels, config.width, 3, padding=1)
        self.second = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.zeros(config.audio_positions, config.width))
        layer = LayerConfig(config.width, config.encoder_heads, config.encoder_inner)
        self.layers = nn.ModuleList(EncoderLayer(layer) for _ in range(config.encoder_layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, mel: Tensor) -> Tensor:
        """mel (b, mels, 2 * audio_positions) -> (b, audio_positions, width)."""
        x = F.gelu(self.second(F.gelu(self.first(mel)))).mT + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Whisper(nn.Module):
    """Waveform and tokens in, logits out. The encoder's output reaches the decoder only as keys and values."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        self.log_mel = LogMel(config.mels)
        self.encoder = WhisperEncoder(config)
        self.decoder = TokenDecoder(config.decoder)

    @property
    def frames(self) -> int:
        """Length of the memory."""
        return self.config.audio_positions

    def encode(self, waveform: Tensor) -> list[KeyValue]:
        """waveform (b, config.samples), float32 at 16 kHz -> keys and values (b, h, audio_positions, d) a layer."""
        mel = self.log_mel(waveform)
        hidden = self.encoder(mel.to(self.encoder.positions.dtype))
        return self.decoder.remember(hidden)

    def forward(self, waveform: Tensor, tokens: Tensor) -> Tensor:
        """waveform (b, config.samples), tokens (b, n), int64 -> logits (b, n, vocabulary): training and reference."""
        length = tokens.shape[1]
        positions = torch.arange(length, device=tokens.device)[None]
        mask = visible(length, length, causal=True, device=tokens.device)
        hidden, _, _ = self.decoder(tokens, positions, mask, self.encode(waveform))
        return self.decoder.logits(hidden)
