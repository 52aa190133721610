"""Images in, text out: an encoder of images and a decoder of tokens.

BLIP (Li et al. 2022, arXiv 2201.12086), the vision-encoder-decoder models, TrOCR among them (Li et al. 2021, arXiv
2109.10282), and GIT (Wang et al. 2022, arXiv 2205.14100) are all this model with other parts; export/ has their tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heedful.models.attention import visible
from heedful.models.cache import KeyValue
from heedful.models.efficientnet import ConvTransformer, ConvTransformerConfig
from heedful.models.text import StackConfig, TokenDecoder
from heedful.models.vision import Normalize, ViT, ViTConfig


@dataclass(frozen=True)
class CaptionerConfig:
    """The two stacks, the `mean` and `std` of each channel by which images are normalised, and what stands between the
    stacks: a linear map where `bridge`, normalised where `bridge_eps` is given.
    """

    encoder: ViTConfig | ConvTransformerConfig
    decoder: StackConfig
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bridge: bool = False
    bridge_eps: float | None = None


class Captioner(nn.Module):
    """Pixels and tokens in, logits out. The encoder's output reaches the decoder only as keys and values."""

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.config = config
        self.normalize = Normalize(config.mean, config.std)
        self.encoder: nn.Module
        if isinstance(config.encoder, ViTConfig):
            self.encoder = ViT(config.encoder)
        else:
            self.encoder = ConvTransformer(config.encoder)
        width = config.decoder.layer.width
        self.bridge = nn.Linear(config.encoder.width, width) if config.bridge else nn.Identity()
        self.bridge_norm = nn.Identity() if config.bridge_eps is None else nn.LayerNorm(width, eps=config.bridge_eps)
        self.decoder = TokenDecoder(config.decoder)

    @property
    def frames(self) -> int:
        """Length of the memory."""
        encoder = self.config.encoder
        return encoder.extra_tokens + encoder.grid[0] * encoder.grid[1]

    def encode(self, pixels: Tensor) -> list[KeyValue]:
        """pixels (b, height, width, 3), uint8 -> keys and values (b, h, k, d) a layer of the k image tokens."""
        return self.decoder.remember(self.bridge_norm(self.bridge(self.encoder(self.normalize(pixels)))))

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """pixels (b, height, width, 3), uint8, tokens (b, n), int64 -> logits (b, n, vocabulary)."""
        return self.write(self.encode(pixels), tokens)

    def write(self, memory: Sequence[KeyValue], tokens: Tensor) -> Tensor:
        """memory, the result of `encode`, tokens (b, n), int64 -> logits (b, n, vocabulary): training and reference."""
        count = tokens.shape[1]
        positions = torch.arange(count, device=tokens.device)[None]
        mask = visible(count, count, causal=True, device=tokens.device)
        hidden, _, _ = self.decoder(tokens, positions, mask, memory)
        return self.decoder.logits(hidden)
