"""Transformer layers, normalised before each block (Xiong et al. 2020, arXiv 2002.04745), on the attention core."""

from torch import Tensor, nn
from torch.nn import functional as F

from heedful.models.attention import CrossAttention, SelfAttention
from heedful.models.cache import KeyValue


class FeedForward(nn.Module):
    """Two linear maps with a GELU between them, at every position alike: (..., width) -> (..., width)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, inner)
        self.output = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.gelu(self.inner(x)))


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward, each on a normalised copy that is added back."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, inner)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (b, n, width) -> (b, n, width)."""
        attended, _ = self.attention(self.attention_norm(x), mask)
        x = x + attended.output
        return x + self.feed_forward(self.feed_forward_norm(x))


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention to a memory, then feed-forward."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.cross_attention_norm = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, inner)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        memory: KeyValue,
        cache: KeyValue | None = None,
        at: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, KeyValue, Tensor | None]:
        """x (b, n, width) -> x, the keys and values of self-attention, the weights of cross-attention (b, h, n, k)."""
        attended, present = self.attention(self.attention_norm(x), mask, cache=cache, at=at)
        x = x + attended.output
        crossed = self.cross_attention(self.cross_attention_norm(x), memory, need_weights=need_weights)
        x = x + crossed.output
        return x + self.feed_forward(self.feed_forward_norm(x)), present, crossed.weights
