"""Stacks of layers over tokens: the encoder that reads a text and the decoder that writes one.

Every family of text models is a pair of `StackConfig`s; the decoder also writes for speech and images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heedful.models.attention import visible
from heedful.models.cache import KeyValue, State
from heedful.models.positions import Learned, RelativeBias, Sinusoidal
from heedful.models.transformer import ACTIVATIONS, DecoderLayer, EncoderLayer, LayerConfig

Positions = Literal["learned", "sinusoidal", "relative"]


@dataclass(frozen=True)
class StackConfig:
    """Sizes and kinds of a stack.

    `max_positions` limits its length. Positions are counted from `position_offset`; `max_timescale` is that of
    `sinusoids`, `buckets` and `max_distance` those of `RelativeBias`. Embeddings are multiplied by `embedding_scale`
    and normalised where `embedding_norm`; `zero_start`: the first of all is zero, whatever the token. `final_norm`: the
    last layer's output is normalised. Of decoders: logits are the product with the embedding, or, not `tied`, with a
    matrix of their own, of hidden states times `output_scale`, plus one number a token where `output_bias`;
    `output_transform`: hidden states go through a linear map, the activation and a norm before that.
    """

    vocabulary: int
    layers: int
    layer: LayerConfig
    positions: Positions
    max_positions: int
    position_offset: int = 0
    max_timescale: float = 10_000.0
    buckets: int = 32
    max_distance: int = 128
    embedding_scale: float = 1.0
    embedding_norm: bool = False
    zero_start: bool = False
    final_norm: bool = False
    tied: bool = True
    output_scale: float = 1.0
    output_bias: bool = False
    output_transform: bool = False


class Stack(nn.Module):
    """What the encoder and the decoder share: embeddings, positions and norms."""

    def __init__(self, config: StackConfig, *, bidirectional: bool) -> None:
        super().__init__()
        self.config = config
        width, slots = config.layer.width, config.max_positions + config.position_offset
        self.tokens = nn.Embedding(config.vocabulary, width)
        # what each channel of an embedding is multiplied by, where it is not stored as it is read
        self.spread: Tensor | None
        self.register_buffer("spread", None, persistent=False)
        if config.zero_start:
            # looked up by position: an operator less than to compare, and two less to make that a factor
            self.register_buffer("started", (torch.arange(slots) > 0).float()[:, None], persistent=False)
        self.positions: nn.Module
        if config.positions == "learned":
            self.positions = Learned(slots, width)
        elif config.positions == "sinusoidal":
            self.positions = Sinusoidal(slots, width, config.max_timescale)
        else:
            self.positions = RelativeBias(config.layer.heads, config.buckets, config.max_distance, bidirectional)
        self.embedding_norm = config.layer.build_norm() if config.embedding_norm else nn.Identity()
        self.norm = config.layer.build_norm() if config.final_norm else nn.Identity()

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens, positions (b or 1, n), int -> (b, n, width)."""
        config = self.config
        x = self.tokens(tokens) * config.embedding_scale
        if self.spread is not None:
            x = x * self.spread
        if config.zero_start:
            x = x * F.embedding(positions, self.get_buffer("started"))
        if config.positions != "relative":
            x = x + self.positions(positions + config.position_offset)
        return self.embedding_norm(x)

    def bias(self, mask: Tensor, positions: Tensor) -> Tensor:
        """`mask` (b, 1, n, k), bool, as it is; where positions are relative, as a float bias (b, h, n, k) for queries
        at `positions` (b or 1, n). A query sees one key for each position from 0 on, in order.
        """
        if not isinstance(self.positions, RelativeBias):
            return mask
        return self.positions(positions, mask.squeeze(1).long().cumsum(-1) - 1).masked_fill(~mask, -math.inf)


class TokenEncoder(Stack):
    """Reads a text: every token sees every other."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__(config, bidirectional=True)
        self.layers = nn.ModuleList(EncoderLayer(config.layer) for _ in range(config.layers))

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens (b, n), of which the first lengths (b,) are real, int -> (b, n, width)."""
        count = tokens.shape[1]
        positions = torch.arange(count, device=tokens.device)[None]
        mask = self.bias(visible(count, count, lengths=lengths, device=tokens.device), positions)
        x = self.embed(tokens, positions)
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)


class Transform(nn.Module):
    """What BERT puts between hidden states and logits: (..., width) -> (..., width)."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.activation = ACTIVATIONS[config.activation]
        self.norm = config.build_norm()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(x)))


class TokenDecoder(Stack):
    """Writes a text about a memory, token by token."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__(config, bidirectional=False)
        self.layers = nn.ModuleList(DecoderLayer(config.layer) for _ in range(config.layers))
        self.output = None if config.tied else nn.Linear(config.layer.width, config.vocabulary, bias=False)
        self.output_bias = nn.Parameter(torch.zeros(config.vocabulary)) if config.output_bias else None
        self.transform = Transform(config.layer) if config.output_transform else nn.Identity()

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        memory: Sequence[KeyValue],
        memory_mask: Tensor | None = None,
        cache: Sequence[KeyValue | State] | None = None,
        at: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, list[KeyValue | State], list[Tensor | None]]:
        """tokens, positions (b or 1, n), mask (b or 1, 1, n, slots), memory_mask (b, 1, 1, k) -> hidden states (b, n,
        width), what each layer will read later of these tokens, and its weights of cross-attention (b, h, n, k).
        """
        x = self.embed(tokens, positions)
        mask = self.bias(mask, positions)
        caches: list[KeyValue | State] = []
        weights: list[Tensor | None] = []
        for i, layer in enumerate(self.layers):
            past = None if cache is None else cache[i]
            x, present, crossed = layer(x, mask, memory[i], memory_mask, past, at, need_weights)
            caches.append(present)
            weights.append(crossed)
        return self.norm(x), caches, weights

    def empty(self, inputs: int, slots: int) -> list[KeyValue | State]:
        """Caches of zeros for every layer."""
        return [layer.get_submodule("attention").empty(inputs, slots) for layer in self.layers]  # type: ignore[operator]

    def remember(self, memory: Tensor) -> list[KeyValue]:
        """The encoder's output (b, k, memory_width) -> the keys and values (b, h, k, d) that each layer reads of it."""
        remembered = []
        for layer in self.layers:
            found, memory = layer.remember(memory)  # type: ignore[operator]
            remembered.append(found)
        return remembered

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., width) -> logits (..., vocabulary), float32."""
        matrix = self.tokens.weight if self.output is None else self.output.weight
        hidden = self.transform(hidden)
        if self.config.output_scale != 1.0:
            hidden = hidden * self.config.output_scale
        logits = F.linear(hidden, matrix).float()
        return logits if self.output_bias is None else logits + self.output_bias.float()
