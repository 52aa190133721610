"""A convolutional network in front of a Transformer: the image encoder of our own small captioner.

EfficientNet-Lite0 is EfficientNet-B0 (Tan and Le 2019, arXiv 1905.11946) without squeeze-and-excitation and with ReLU6,
made for small devices. Here its batch norms are folded into the convolutions, so every convolution has a bias.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heedful.models.transformer import EncoderLayer, LayerConfig

CHANNELS, STRIDE = 1280, 32
_STEM = 32
# of each stage: kernel, stride of its first block, expansion, channels, blocks
_STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
           (3, 1, 6, 320, 1))  # fmt: skip


class Convolution(nn.Module):
    """A convolution with a bias and, if `active`, a ReLU6; padded as TensorFlow's "same" for sizes that `stride`
    divides, which for a stride of 2 is one pixel more after than before.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, active: bool = True
    ) -> None:
        super().__init__()
        self.active = active
        margin = kernel - stride
        self.padding = (margin // 2, margin - margin // 2) * 2
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(F.pad(x, self.padding) if any(self.padding) else x)
        return F.relu6(x) if self.active else x


class Inverted(nn.Module):
    """An inverted bottleneck (Sandler et al. 2018, arXiv 1801.04381): expand, filter each channel, project; added to
    what it read where the shape stays.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = Convolution(inputs, wide) if expansion > 1 else nn.Identity()
        self.depthwise = Convolution(wide, wide, kernel, stride=stride, groups=wide)
        self.project = Convolution(wide, outputs, active=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        found = self.project(self.depthwise(self.expand(x)))
        return x + found if self.residual else found


class EfficientNetLite0(nn.Module):
    """Images (b, 3, height, width), sizes multiples of 32 -> (b, 1280, height / 32, width / 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, _STEM, 3, stride=2)
        blocks, inputs = [], _STEM
        for kernel, stride, expansion, outputs, count in _STAGES:
            for i in range(count):
                blocks.append(Inverted(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = Convolution(inputs, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@dataclass(frozen=True)
class ConvTransformerConfig:
    """Height and width of images in pixels, multiples of 32, and the encoder layers over the network's output."""

    size: tuple[int, int]
    layers: int
    layer: LayerConfig

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return self.size[0] // STRIDE, self.size[1] // STRIDE

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.layer.width

    @property
    def extra_tokens(self) -> int:
        """Tokens that are no part of the image."""
        return 0


class ConvTransformer(nn.Module):
    """EfficientNet-Lite0, a linear map to tokens, learned positions, and a stack of encoder layers."""

    def __init__(self, config: ConvTransformerConfig) -> None:
        super().__init__()
        self.config = config
        rows, columns = config.grid
        self.network = EfficientNetLite0()
        self.projection = nn.Linear(CHANNELS, config.width)
        self.positions = nn.Parameter(torch.zeros(rows * columns, config.width))
        self.layers = nn.ModuleList(EncoderLayer(config.layer) for _ in range(config.layers))
        self.norm = config.layer.build_norm()

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (b, height, width, 3), normalised -> (b, rows * columns, width)."""
        features = self.network(pixels.to(self.positions.dtype).permute(0, 3, 1, 2))
        return self.read(features.flatten(2).mT)

    def read(self, features: Tensor) -> Tensor:
        """features (b, rows * columns, 1280), the network's output as tokens -> (b, rows * columns, width)."""
        x = self.projection(features) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)
