"""EfficientNet-Lite0 beside the published network written out plainly: batch norms apart, "same" padding by formula."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from heedful.models.efficientnet import EfficientNetLite0

EPS = 1e-3
# kernel, stride, expansion, channels read, channels written of each block, as in the paper's table
BLOCKS = [
    (3, 1, 1, 32, 16),
    (3, 2, 6, 16, 24), (3, 1, 6, 24, 24),
    (5, 2, 6, 24, 40), (5, 1, 6, 40, 40),
    (3, 2, 6, 40, 80), (3, 1, 6, 80, 80), (3, 1, 6, 80, 80),
    (5, 1, 6, 80, 112), (5, 1, 6, 112, 112), (5, 1, 6, 112, 112),
    (5, 2, 6, 112, 192), (5, 1, 6, 192, 192), (5, 1, 6, 192, 192), (5, 1, 6, 192, 192),
    (3, 1, 6, 192, 320),
]  # fmt: skip


def same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's padding before and after, of which the output is size / stride, rounded up, long."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


@dataclass
class Plain:
    """Every convolution with random weights and batch norm statistics, which are kept in order."""

    chance: torch.Generator
    folded: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def draw(self, *shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.chance, dtype=torch.float64)

    def convolve(self, x: Tensor, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> Tensor:
        inputs = x.shape[1] // groups
        weight = self.draw(outputs, inputs, kernel, kernel) * (3 / (inputs * kernel**2)) ** 0.5
        mean, beta = self.draw(outputs), self.draw(outputs)
        variance, gamma = self.draw(outputs, low=0.3, high=2.0), self.draw(outputs, low=0.5, high=2.0)
        factor = gamma / (variance + EPS).sqrt()
        self.folded.append((weight * factor[:, None, None, None], beta - mean * factor))
        padding = (*same(x.shape[3], kernel, stride), *same(x.shape[2], kernel, stride))
        x = F.conv2d(F.pad(x, padding), weight, stride=stride, groups=groups)
        return F.batch_norm(x, mean, variance, gamma, beta, eps=EPS)

    def __call__(self, x: Tensor) -> Tensor:
        x = F.relu6(self.convolve(x, 32, 3, stride=2))
        for kernel, stride, expansion, inputs, outputs in BLOCKS:
            wide = inputs * expansion
            hidden = F.relu6(self.convolve(x, wide)) if expansion > 1 else x
            hidden = F.relu6(self.convolve(hidden, wide, kernel, stride=stride, groups=wide))
            hidden = self.convolve(hidden, outputs)
            x = x + hidden if stride == 1 and inputs == outputs else hidden
        return F.relu6(self.convolve(x, 1280))


@pytest.mark.parametrize("size", [(224, 224), (64, 96)])
@torch.no_grad()
def test_folded_network_is_the_published_one(size: tuple[int, int]) -> None:
    plain = Plain(torch.Generator().manual_seed(0))
    images = plain.draw(1, 3, *size)
    expected = plain(images)
    network = EfficientNetLite0().double()
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    for convolution, (weight, bias) in zip(convolutions, plain.folded, strict=True):
        convolution.load_state_dict({"weight": weight, "bias": bias})
    found = network(images)
    assert found.shape == (1, 1280, size[0] // 32, size[1] // 32)
    assert 0.02 < (expected > 0).double().mean() < 0.98
    assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
