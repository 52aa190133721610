"""Transformer layers on the attention core: normalised before each block (Xiong et al. 2020, arXiv 2002.04745) or after
it (Vaswani et al. 2017, arXiv 1706.03762), with a recurrent cell in place of self-attention where a model has one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heedful.models.attention import CrossAttention, SelfAttention
from heedful.models.cache import KeyValue
from heedful.models.ssru import SSRU

ActivationName = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]
ACTIVATIONS: dict[ActivationName, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
}
NORMS: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


@dataclass(frozen=True)
class LayerConfig:
    """Sizes and kinds of one layer.

    `inner` is the width between the two maps of the feed-forward block; `gated` has it multiplied by a second map
    (Shazeer 2020, arXiv 2002.05202). `head_dim` and `scale`, of the dot product, are width / heads and
    1 / sqrt(head_dim) unless given. `norm_first`: each block reads a normalised copy; else its sum with what it read is
    normalised. Of decoders: `memory_width` is that of what cross-attention reads, `width` unless given; `recurrent`: an
    `SSRU` in place of self-attention; `prefixed`: there is no cross-attention, the memory are tokens that went through
    the same layers before the text and that self-attention sees as well.
    """

    width: int
    heads: int
    inner: int
    head_dim: int | None = None
    scale: float | None = None
    bias: bool = True
    norm: Literal["layer", "rms"] = "layer"
    eps: float = 1e-5
    norm_first: bool = True
    activation: ActivationName = "gelu"
    gated: bool = False
    memory_width: int | None = None
    recurrent: bool = False
    prefixed: bool = False

    def build_norm(self) -> nn.Module:
        """A normalisation of `width` channels."""
        return NORMS[self.norm](self.width, eps=self.eps)


class FeedForward(nn.Module):
    """Two linear maps with an activation between them, at every position alike: (..., width) -> (..., width)."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.gated = config.gated
        self.activation = ACTIVATIONS[config.activation]
        # a gate and what it lets through come from one matrix product
        self.inner = nn.Linear(config.width, config.inner * (2 if config.gated else 1), config.bias)
        self.output = nn.Linear(config.inner, config.width, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(x)
        if self.gated:
            gate, hidden = hidden.chunk(2, dim=-1)
            return self.output(self.activation(gate) * hidden)
        return self.output(self.activation(hidden))


class Block(nn.Module):
    """A layer's blocks read what `before` gives and hand on what `after` gives."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.feed_forward_norm = config.build_norm()
        self.feed_forward = FeedForward(config)

    def before(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x) if self.norm_first else x

    def after(self, norm: nn.Module, x: Tensor) -> Tensor:
        return x if self.norm_first else norm(x)

    def feed(self, x: Tensor) -> Tensor:
        """The feed-forward block: (b, n, width) -> (b, n, width)."""
        return self.after(self.feed_forward_norm, x + self.feed_forward(self.before(self.feed_forward_norm, x)))


class EncoderLayer(Block):
    """Self-attention, then feed-forward."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__(config)
        self.attention_norm = config.build_norm()
        self.attention = SelfAttention(
            config.width, config.heads, head_dim=config.head_dim, bias=config.bias, scale=config.scale
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (b, n, width), mask as in `DotProductScore` -> (b, n, width)."""
        attended, _ = self.attention(self.before(self.attention_norm, x), mask)
        return self.feed(self.after(self.attention_norm, x + attended.output))


class DecoderLayer(Block):
    """Self-attention or a recurrent cell, cross-attention to a memory, then feed-forward."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__(config)
        sizes: dict[str, Any] = {"head_dim": config.head_dim, "bias": config.bias, "scale": config.scale}
        self.prefixed = config.prefixed
        self.attention_norm = config.build_norm()
        self.attention: SelfAttention | SSRU = (
            SSRU(config.width) if config.recurrent else SelfAttention(config.width, config.heads, **sizes)
        )
        if not config.prefixed:
            self.cross_attention_norm = config.build_norm()
            self.cross_attention = CrossAttention(config.width, config.heads, memory_width=config.memory_width, **sizes)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        memory: KeyValue,
        memory_mask: Tensor | None = None,
        cache: KeyValue | None = None,
        at: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, KeyValue, Tensor | None]:
        """x (b, n, width) -> x, what self-attention or the cell will read later, and the weights (b, h, n, k) of the
        memory.
        """
        reads: dict[str, Any] = {"prefix": memory, "need_weights": need_weights} if self.prefixed else {}
        attended, present = self.attention(self.before(self.attention_norm, x), mask, cache=cache, at=at, **reads)
        x = self.after(self.attention_norm, x + attended.output)
        if self.prefixed:
            weights = None if attended.weights is None else attended.weights[..., : memory.key.shape[2]]
            return self.feed(x), present, weights
        crossed = self.cross_attention(self.before(self.cross_attention_norm, x), memory, memory_mask, need_weights)
        x = self.after(self.cross_attention_norm, x + crossed.output)
        return self.feed(x), present, crossed.weights

    def remember(self, memory: Tensor) -> tuple[KeyValue, Tensor]:
        """memory (b, k, memory_width) -> the keys and values (b, h, k, d) that this layer reads of it, and the memory
        that the next layer reads.
        """
        if not self.prefixed:
            return self.cross_attention.remember(memory), memory
        attended, present = self.attention(self.before(self.attention_norm, memory))
        return present, self.feed(self.after(self.attention_norm, memory + attended.output))
