"""The graphs of a bundle as modules with flat, named inputs and outputs, ready to be traced.

Every graph treats one input (a recording's window, a sentence) as one entry of the batch axis `b`. All hypotheses about
it, the beams, lie side by side on the query axis `n` and share one cache of `slots`: `mask` says which slots each query
may see, so a beam is a set of visible slots, and reordering beams moves no cache. Cross-attention over `memory` is
shared by all beams of an input in the same way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from heedful.models.attention import visible
from heedful.models.cache import KeyValue, State
from heedful.models.text import TokenDecoder

Cache = KeyValue | State
C = TypeVar("C", bound=Cache)


class Model(Protocol):
    """What is exported: an encoder of some input, and a decoder of tokens."""

    @property
    def decoder(self) -> TokenDecoder: ...
    @property
    def frames(self) -> int: ...
    @property
    def encode(self) -> Callable[..., list[KeyValue]]: ...


@dataclass(frozen=True)
class Graph:
    """A module to trace: example `inputs` by name, `axes` the names of the axes that vary, by input and axis number.

    An input that the module takes as a list is a dictionary here, with the name of each tensor.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Any]
    outputs: list[str]
    axes: dict[str, Any] = field(default_factory=dict)

    @property
    def input_names(self) -> list[str]:
        names: list[str] = []
        for name, value in self.inputs.items():
            names += value if isinstance(value, dict) else [name]
        return names

    @property
    def example(self) -> tuple[Any, ...]:
        """What the module is called with."""
        return tuple(list(value.values()) if isinstance(value, dict) else value for value in self.inputs.values())


def named(prefix: str, caches: Sequence[Cache]) -> dict[str, Tensor]:
    """The parts of the caches layer by layer, as `flatten` orders them, by the names they have in graphs."""
    # contiguous, as they will be fed
    return {
        f"{prefix}.{layer}.{part}": tensor.contiguous()
        for layer, cache in enumerate(caches)
        for part, tensor in cache._asdict().items()
    }


def flatten(caches: Sequence[Cache]) -> list[Tensor]:
    """The parts of the caches layer by layer."""
    return [tensor for cache in caches for tensor in cache]


def gather(tensors: Sequence[Tensor], kinds: Sequence[type[C]]) -> list[C]:
    """What `flatten` took apart: one cache for each of `kinds`."""
    left = iter(tensors)
    return [kind(*(next(left) for _ in kind._fields)) for kind in kinds]


class Encoder(nn.Module):
    """Raw input to the keys and values that cross-attention reads."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
        return tuple(flatten(self.model.encode(source) if lengths is None else self.model.encode(source, lengths)))


class Decoder(nn.Module):
    """Prefill and step in one: new tokens in, logits of the selected ones out, caches written in place.

    tokens, positions (b, n) int64; at (b,) int64, the slot of each input's first new token; mask (b, n, slots) bool;
    select (m,) int64, places in the flattened (b * n) tokens whose logits are wanted; frames (b,) int64, how much of
    each input's memory is real, all of it if left out -> logits (m, vocabulary) float32.
    """

    def __init__(self, decoder: TokenDecoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.kinds = [type(cache) for cache in decoder.empty(1, 1)]

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        at: Tensor,
        mask: Tensor,
        select: Tensor,
        past: list[Tensor],
        memory: list[Tensor],
        frames: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        hidden, present, _ = self.decoder(
            tokens,
            positions,
            mask[:, None],
            gather(memory, [KeyValue] * len(self.kinds)),
            memory_mask(memory, frames),
            cache=gather(past, self.kinds),
            at=at,
        )
        logits = self.decoder.logits(hidden.flatten(0, 1)[select])
        return (logits, *flatten(present))


class Aligner(nn.Module):
    """A finished text read again: where each of its tokens looked, and how likely each was.

    tokens (b, n) int64, frames as in `Decoder` -> weights (b, heads, n, k) float32 of the chosen cross-attention
    `heads`, each (layer, head); logprobs (b, n - 1) float32: log-probability of token i + 1 after tokens 0 ... i, among
    tokens below `vocabulary`.
    """

    def __init__(self, decoder: TokenDecoder, heads: Sequence[tuple[int, int]], vocabulary: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.heads = list(heads)
        self.vocabulary = vocabulary

    def forward(self, tokens: Tensor, memory: list[Tensor], frames: Tensor | None = None) -> tuple[Tensor, Tensor]:
        length = tokens.shape[1]
        positions = torch.arange(length, device=tokens.device)[None]
        mask = visible(length, length, causal=True, device=tokens.device)
        remembered = gather(memory, [KeyValue] * (len(memory) // 2))
        hidden, _, weights = self.decoder(
            tokens, positions, mask, remembered, memory_mask(memory, frames), need_weights=True
        )
        chosen = torch.stack([layer_weights(weights, layer)[:, head] for layer, head in self.heads], dim=1)
        # as one long row of tokens, so that the product with the embedding is the same Gemm as the decoder's
        logits = self.decoder.logits(hidden[:, :-1].flatten(0, 1))[:, : self.vocabulary]
        targets = tokens[:, 1:].clamp(max=self.vocabulary - 1)
        logprobs = logits.log_softmax(-1).gather(1, targets.flatten()[:, None])
        return chosen.float(), logprobs.view(targets.shape)


def memory_mask(memory: list[Tensor], frames: Tensor | None) -> Tensor | None:
    """Which of the keys in `memory`, (b, h, k, d) each, are real: (b, 1, 1, k), bool."""
    if frames is None:
        return None
    return visible(1, memory[0].shape[2], lengths=frames, device=frames.device)


def layer_weights(weights: Sequence[Tensor | None], layer: int) -> Tensor:
    """The attention weights of `layer`, which must have been asked for."""
    found = weights[layer]
    assert found is not None, "the decoder was run without need_weights"
    return found


@dataclass(frozen=True)
class Reading:
    """How an aligner reads a text: the cross-attention heads to show, each (layer, head), and the tokens below
    `vocabulary` that probabilities are over.
    """

    heads: Sequence[tuple[int, int]]
    vocabulary: int


def build_graphs(model: Model, inputs: dict[str, Any], axes: dict[str, Any], reading: Reading) -> list[Graph]:
    """Encoder, decoder and aligner of `model`, whose `encode` takes `inputs`, with a memory as long as they make it.

    A memory whose length varies has an input `lengths` that says how much of each input is real.
    """
    batch, new, slots, selected = 2, 3, 64, 4
    with torch.no_grad():
        remembered = model.encode(*inputs.values())
    varies = "lengths" in inputs
    memory, memory_axes = named("memory", remembered), {0: "b", 2: "frames"} if varies else {0: "b"}
    past = model.decoder.empty(batch, slots)
    tokens = torch.zeros(batch, new, dtype=torch.int64)
    decoder_inputs: dict[str, Any] = {
        "tokens": tokens,
        "positions": torch.arange(new).expand(batch, new).contiguous(),
        "at": torch.zeros(batch, dtype=torch.int64),
        "mask": torch.ones(batch, new, slots, dtype=torch.bool),
        "select": torch.arange(selected),
        "past": named("past", past),
        "memory": memory,
    }
    decoder_axes = {
        "tokens": {0: "b", 1: "n"},
        "positions": {0: "b", 1: "n"},
        "at": {0: "b"},
        "mask": {0: "b", 1: "n", 2: "slots"},
        "select": {0: "m"},
        "past": [{0: "b", 2: "slots"}] * len(decoder_inputs["past"]),
        "memory": [memory_axes] * len(memory),
    }
    if varies:
        decoder_inputs["frames"], decoder_axes["frames"] = torch.ones(batch, dtype=torch.int64), {0: "b"}
    read = [name for name in ("tokens", "memory", "frames") if name in decoder_inputs]
    return [
        Graph("encoder", Encoder(model), inputs, list(memory), axes),
        Graph(
            "decoder",
            Decoder(model.decoder),
            decoder_inputs,
            ["logits", *named("present", past)],
            decoder_axes,
        ),
        Graph(
            "aligner",
            Aligner(model.decoder, reading.heads, reading.vocabulary),
            {name: decoder_inputs[name] for name in read},
            ["weights", "logprobs"],
            {name: decoder_axes[name] for name in read},
        ),
    ]
