"""Whisper: speech to text, an encoder-decoder over log-mel frames (Radford et al. 2022, arXiv 2212.04356).

Every published size is a `WhisperConfig`: tiny to large-v3, turbo and distil differ in numbers only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heedful.models.attention import CrossAttention, visible
from heedful.models.cache import KeyValue
from heedful.models.positions import Learned
from heedful.models.spectrogram import LogMel
from heedful.models.transformer import DecoderLayer, EncoderLayer


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


class WhisperEncoder(nn.Module):
    """Log-mel frames through two convolutions, the second halving their number, and a stack of encoder layers."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.first = nn.Conv1d(config.mels, config.width, 3, padding=1)
        self.second = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.zeros(config.audio_positions, config.width))
        layer = (config.width, config.encoder_heads, config.encoder_inner)
        self.layers = nn.ModuleList(EncoderLayer(*layer) for _ in range(config.encoder_layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, mel: Tensor) -> Tensor:
        """mel (b, mels, 2 * audio_positions) -> (b, audio_positions, width)."""
        x = F.gelu(self.second(F.gelu(self.first(mel)))).mT + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class WhisperDecoder(nn.Module):
    """Token and position embeddings, a stack of decoder layers, and the token embedding again for the logits."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = Learned(config.text_positions, config.width)
        layer = (config.width, config.decoder_heads, config.decoder_inner)
        self.layers = nn.ModuleList(DecoderLayer(*layer) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        memory: Sequence[KeyValue],
        cache: Sequence[KeyValue] | None = None,
        at: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, list[KeyValue], list[Tensor | None]]:
        """tokens, positions (b, n), mask (b or 1, 1, n, slots) -> hidden states (b, n, width), keys and values of
        self-attention and weights of cross-attention (b, h, n, audio_positions) layer by layer.
        """
        x = self.tokens(tokens) + self.positions(positions)
        caches: list[KeyValue] = []
        weights: list[Tensor | None] = []
        for i, layer in enumerate(self.layers):
            x, present, crossed = layer(x, mask, memory[i], None if cache is None else cache[i], at, need_weights)
            caches.append(present)
            weights.append(crossed)
        return self.norm(x), caches, weights

    def remember(self, memory: Tensor) -> list[KeyValue]:
        """The encoder's output (b, k, width) -> keys and values (b, h, k, d) for the cross-attention of each layer."""
        attentions = (layer.get_submodule("cross_attention") for layer in self.layers)
        return [attention.remember(memory) for attention in attentions if isinstance(attention, CrossAttention)]

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., width) -> logits (..., vocabulary), float32."""
        return F.linear(hidden, self.tokens.weight).float()


class Whisper(nn.Module):
    """Waveform and tokens in, logits out. The encoder's output reaches the decoder only as keys and values."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        self.log_mel = LogMel(config.mels)
        self.encoder = WhisperEncoder(config)
        self.decoder = WhisperDecoder(config)

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
