"""Images as tokens: square patches through a linear map, and a stack of encoder layers over them.

Dosovitskiy et al. 2020, arXiv 2010.11929 (ViT); Touvron et al. 2020, arXiv 2012.12877 (DeiT); Radford et al. 2021,
arXiv 2103.00020 (CLIP). The encoders of ViT, DeiT, BLIP and CLIP differ in numbers only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heedful.models.transformer import EncoderLayer, LayerConfig


class Normalize(nn.Module):
    """Bytes of an image to numbers around zero: (pixel / 255 - mean) / std in each channel."""

    factor: Tensor
    offset: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        means, stds = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self.register_buffer("factor", (1 / (255 * stds)).float(), persistent=False)
        self.register_buffer("offset", (-means / stds).float(), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (b, height, width, 3), uint8 -> the same shape, float32."""
        return pixels.float() * self.factor + self.offset


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of a vision Transformer.

    `size` are height and width of its images in pixels, `patch` the side of a patch. `extra_tokens` trained tokens
    stand before the patches, ViT's class token and DeiT's distillation token. `embedding_norm`: tokens are normalised
    before the first layer.
    """

    size: tuple[int, int]
    patch: int
    layers: int
    layer: LayerConfig
    extra_tokens: int = 1
    patch_bias: bool = True
    embedding_norm: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.size[0] // self.patch, self.size[1] // self.patch

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.layer.width


class ViT(nn.Module):
    """A vision Transformer, its last layer's output normalised."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        rows, columns = config.grid
        self.patches = nn.Linear(config.patch**2 * 3, config.width, config.patch_bias)
        self.extra = nn.Parameter(torch.zeros(config.extra_tokens, config.width))
        self.positions = nn.Parameter(torch.zeros(config.extra_tokens + rows * columns, config.width))
        self.embedding_norm = config.layer.build_norm() if config.embedding_norm else nn.Identity()
        self.layers = nn.ModuleList(EncoderLayer(config.layer) for _ in range(config.layers))
        self.norm = config.layer.build_norm()

    def cut(self, pixels: Tensor) -> Tensor:
        """(b, height, width, 3) -> patches (b, rows * columns, patch * patch * 3), pixels row by row, channels last."""
        (rows, columns), patch = self.config.grid, self.config.patch
        cut = pixels[:, : rows * patch, : columns * patch].unflatten(2, (columns, patch)).unflatten(1, (rows, patch))
        return cut.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (b, height, width, 3), normalised -> (b, extra_tokens + rows * columns, width)."""
        x = self.patches(self.cut(pixels).to(self.positions.dtype))
        x = torch.cat([self.extra.expand(len(x), -1, -1), x], dim=1) + self.positions
        x = self.embedding_norm(x)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)
