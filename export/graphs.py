"""The graphs of a bundle as modules with flat, named inputs and outputs, ready to be traced.

Every graph treats one input (a recording's window, a sentence) as one entry of the batch axis `b`. All hypotheses about
it, the beams, lie side by side on the query axis `n` and share one cache of `slots`: `mask` says which slots each query
may see, so a beam is a set of visible slots, and reordering beams moves no cache. Cross-attention over `memory` is
shared by all beams of an input in the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from heedful.models.attention import visible
from heedful.models.cache import KeyValue
from heedful.models.whisper import Whisper


@dataclass(frozen=True)
class Graph:
    """A module to trace: `example` inputs by name, `axes` the names of the axes that vary, by input and axis number."""

    name: str
    module: nn.Module
    inputs: dict[str, Any]
    outputs: list[str]
    axes: dict[str, Any] = field(default_factory=dict)

    @property
    def input_names(self) -> list[str]:
        names: list[str] = []
        for name, value in self.inputs.items():
            names += layer_names(name, len(value) // 2) if isinstance(value, list) else [name]
        return names


def layer_names(prefix: str, layers: int) -> list[str]:
    """Names of the keys and values of each layer, in the order in which they are flattened."""
    return [f"{prefix}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def flatten(caches: Sequence[KeyValue]) -> list[Tensor]:
    """Keys and values layer by layer, in the order of `layer_names`."""
    return [tensor for cache in caches for tensor in cache]


def pair(tensors: Sequence[Tensor]) -> list[KeyValue]:
    """What `flatten` took apart."""
    return [KeyValue(*tensors[i : i + 2]) for i in range(0, len(tensors), 2)]


class Encoder(nn.Module):
    """Raw input to the keys and values that cross-attention reads."""

    def __init__(self, model: Whisper) -> None:
        super().__init__()
        self.model = model

    def forward(self, waveform: Tensor) -> tuple[Tensor, ...]:
        return tuple(flatten(self.model.encode(waveform)))


class Decoder(nn.Module):
    """Prefill and step in one: new tokens in, logits of the selected ones out, caches written in place.

    tokens, positions (b, n) int64; at (b,) int64, the slot of each input's first new token; mask (b, n, slots) bool;
    select (m,) int64, places in the flattened (b * n) tokens whose logits are wanted -> logits (m, vocabulary) float32.
    """

    def __init__(self, model: Whisper) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        at: Tensor,
        mask: Tensor,
        select: Tensor,
        past: list[Tensor],
        memory: list[Tensor],
    ) -> tuple[Tensor, ...]:
        hidden, present, _ = self.model.decoder(tokens, positions, mask[:, None], pair(memory), pair(past), at)
        logits = self.model.decoder.logits(hidden.flatten(0, 1)[select])
        return (logits, *flatten(present))


class Aligner(nn.Module):
    """A finished text read again: where each of its tokens looked, and how likely each was.

    tokens (b, n) int64 -> weights (b, heads, n, k) float32 of the chosen cross-attention `heads`, each (layer, head);
    logprobs (b, n - 1) float32: log-probability of token i + 1 after tokens 0 ... i, among tokens below `vocabulary`.
    """

    def __init__(self, model: Whisper, heads: Sequence[tuple[int, int]], vocabulary: int) -> None:
        super().__init__()
        self.model = model
        self.heads = list(heads)
        self.vocabulary = vocabulary

    def forward(self, tokens: Tensor, memory: list[Tensor]) -> tuple[Tensor, Tensor]:
        length = tokens.shape[1]
        positions = torch.arange(length, device=tokens.device)[None]
        mask = visible(length, length, causal=True, device=tokens.device)
        hidden, _, weights = self.model.decoder(tokens, positions, mask, pair(memory), need_weights=True)
        chosen = torch.stack([layer_weights(weights, layer)[:, head] for layer, head in self.heads], dim=1)
        # as one long row of tokens, so that the product with the embedding is the same Gemm as the decoder's
        logits = self.model.decoder.logits(hidden[:, :-1].flatten(0, 1))[:, : self.vocabulary]
        targets = tokens[:, 1:].clamp(max=self.vocabulary - 1)
        logprobs = logits.log_softmax(-1).gather(1, targets.flatten()[:, None])
        return chosen.float(), logprobs.view(targets.shape)


def layer_weights(weights: Sequence[Tensor | None], layer: int) -> Tensor:
    """The attention weights of `layer`, which must have been asked for."""
    found = weights[layer]
    assert found is not None, "the decoder was run without need_weights"
    return found


def whisper_graphs(model: Whisper, alignment_heads: Sequence[tuple[int, int]], text_vocabulary: int) -> list[Graph]:
    """Encoder, decoder and aligner of a Whisper model."""
    config = model.config
    layers, heads, head_dim = config.decoder_layers, config.decoder_heads, config.width // config.decoder_heads
    dtype = model.decoder.tokens.weight.dtype
    batch, new, slots, selected = 2, 3, 64, 4

    def caches(length: int) -> list[Tensor]:
        return [torch.zeros(batch, heads, length, head_dim, dtype=dtype) for _ in range(2 * layers)]

    memory = caches(config.audio_positions)
    memory_axes = [{0: "b"}] * len(memory)
    tokens = torch.zeros(batch, new, dtype=torch.int64)
    decoder_inputs = {
        "tokens": tokens,
        "positions": torch.arange(new).expand(batch, new).contiguous(),
        "at": torch.zeros(batch, dtype=torch.int64),
        "mask": torch.ones(batch, new, slots, dtype=torch.bool),
        "select": torch.arange(selected),
        "past": caches(slots),
        "memory": memory,
    }
    decoder_axes = {
        "tokens": {0: "b", 1: "n"},
        "positions": {0: "b", 1: "n"},
        "at": {0: "b"},
        "mask": {0: "b", 1: "n", 2: "slots"},
        "select": {0: "m"},
        "past": [{0: "b", 2: "slots"}] * len(memory),
        "memory": memory_axes,
    }
    waveform = {"waveform": torch.zeros(batch, config.samples)}
    return [
        Graph("encoder", Encoder(model), waveform, layer_names("memory", layers), {"waveform": {0: "b"}}),
        Graph("decoder", Decoder(model), decoder_inputs, ["logits", *layer_names("present", layers)], decoder_axes),
        Graph(
            "aligner",
            Aligner(model, alignment_heads, text_vocabulary),
            {"tokens": tokens, "memory": memory},
            ["weights", "logprobs"],
            {"tokens": {0: "b", 1: "n"}, "memory": memory_axes},
        ),
    ]
