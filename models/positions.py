"""Where in the sequence: attention alone cannot tell, so each scheme here adds it.

Sources: Vaswani et al. 2017, arXiv 1706.03762 (sinusoidal); Su et al. 2021, arXiv 2104.09864 (rotary);
Raffel et al. 2020, arXiv 1910.10683 (relative bias).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoids(length: int, width: int, max_timescale: float = 10_000.0) -> Tensor:
    """(length, width) float32: the sines in the first half of the columns, the cosines in the second.

    Wavelengths run from 2 pi to 2 pi * `max_timescale` in a geometric progression.
    """
    half = width // 2
    rates = torch.exp(-math.log(max_timescale) / max(half - 1, 1) * torch.arange(half))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Sinusoidal(nn.Module):
    """A fixed table, `sinusoids`, looked up by position."""

    table: Tensor

    def __init__(self, length: int, width: int, max_timescale: float = 10_000.0) -> None:
        super().__init__()
        self.register_buffer("table", sinusoids(length, width, max_timescale), persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        """positions (..., n), int -> (..., n, width)."""
        return F.embedding(positions, self.table)


class Learned(nn.Embedding):
    """A trained table, looked up by position: positions (..., n), int -> (..., n, width)."""


class Rotary(nn.Module):
    """Turns each pair of channels of a query or key by an angle that grows with its position.

    Pairs are channel i and channel i + dim / 2 of the first `dim` channels (the layout of GPT-NeoX and Llama);
    channels past `dim` stay as they are. Scores then depend only on the distance between query and key.
    """

    rates: Tensor

    def __init__(self, dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"a rotary embedding turns pairs of channels: dim must be even, not {dim}")
        self.dim = dim
        self.register_buffer("rates", base ** (-torch.arange(0, dim, 2) / dim), persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (b, h, n, d) with d >= dim, positions (b or 1, n) -> x turned, same shape and dtype."""
        angles = positions[:, None, :, None] * self.rates
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        first, second, rest = x.split([self.dim // 2, self.dim // 2, x.shape[-1] - self.dim], dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


class RelativeBias(nn.Module):
    """T5's bias on the scores: one learned number for each head and bucket of distance.

    Half of the buckets hold one exact distance each, the other half grow logarithmically up to `max_distance`; when
    `bidirectional`, keys after the query have buckets of their own, else they share the bucket of distance 0.
    """

    def __init__(self, heads: int, buckets: int = 32, max_distance: int = 128, bidirectional: bool = True) -> None:
        super().__init__()
        self.bias = nn.Embedding(buckets, heads)
        self.max_distance = max_distance
        self.bidirectional = bidirectional

    def bucket(self, distance: Tensor) -> Tensor:
        """Bucket, int64, of each `distance` = position of the key - position of the query."""
        buckets = self.bias.num_embeddings
        offset = torch.zeros_like(distance)
        if self.bidirectional:
            buckets //= 2
            offset = (distance > 0).long() * buckets
            distance = distance.abs()
        else:
            distance = (-distance).clamp(min=0)
        exact = buckets // 2
        growth = torch.log(distance.clamp(min=1) / exact) / math.log(self.max_distance / exact)
        large = (exact + (growth * (buckets - exact)).long()).clamp(max=buckets - 1)
        return offset + torch.where(distance < exact, distance, large)

    def forward(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """query_positions (b, q), key_positions (b, k) or (b, q, k), int -> bias (b, heads, q, k) to add to scores."""
        if key_positions.dim() == 2:
            key_positions = key_positions[:, None, :]
        distance = key_positions - query_positions[:, :, None]
        return self.bias(self.bucket(distance)).permute(0, 3, 1, 2)
