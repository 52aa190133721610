"""Attention: every query takes a mean of the values, weighted by how well it matches each key.

Shape legend, here and in every model:

    b  inputs in the batch        q  queries        d  width of a query and of a key
    h  query heads                k  keys           e  width of a value
    g  key/value heads, h a multiple of g

Sources: Bahdanau et al. 2015, arXiv 1409.0473 (additive score); Vaswani et al. 2017, arXiv 1706.03762 (scaled
dot product, several heads); Ainslie et al. 2023, arXiv 2305.13245 (grouped key/value heads).
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heedful.models.cache import KeyValue, write
from heedful.models.positions import Rotary

ScoreName = Literal["dot", "additive"]


class Attended(NamedTuple):
    """`output` with one row per query; `weights` (b, h, q, k), each row summing to 1, or None if not asked for."""

    output: Tensor
    weights: Tensor | None


def visible(
    queries: int, keys: int, *, causal: bool = False, lengths: Tensor | None = None, device: torch.device | None = None
) -> Tensor:
    """Which key each query may see: bool, (1 or b, 1, queries, keys), True where it may.

    `causal`: the last query sees every key and each one before it sees one less. `lengths` (b,), int: the number of
    keys of each input that are real; the rest is padding.
    """
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device)[None, None]
    if causal:
        mask = mask.tril(keys - queries)
    if lengths is None:
        return mask
    real = (torch.arange(keys, device=lengths.device) < lengths[:, None])[:, None, None, :]
    # a single query sees all that is real, causal or not
    return real if queries == 1 else mask & real


def weigh(scores: Tensor, value: Tensor, mask: Tensor | None) -> Attended:
    """Softmax of `scores` (b, h, q, k) over the keys, then the mean of `value` (b, h, k, e).

    `mask`, broadcast to the scores, is bool (True: may be seen) or a float bias that is added. Softmax runs in float32.
    """
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return Attended(weights @ value, weights)


def group(query: Tensor, kv: Tensor) -> Tensor:
    """`kv` (b, g, k, d) with each head repeated for the h / g query heads of its group: (b, h, k, d)."""
    repeats = query.shape[1] // kv.shape[1]
    return kv if repeats == 1 else kv.repeat_interleave(repeats, dim=1)


class DotProductScore(nn.Module):
    """softmax(Q K^T * scale + mask) V; `scale` is 1 / sqrt(d) unless given (T5 trains with 1)."""

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        self.scale = scale

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, need_weights: bool = False
    ) -> Attended:
        """query (b, h, q, d), key (b, g, k, d), value (b, g, k, e) -> output (b, h, q, e).

        `mask` (b or 1, h or 1, q, k): bool, True where the key may be seen, or a float bias. Without `need_weights`
        this is one fused operation that never stores the weights, and one `Attention` node in ONNX.
        """
        if not need_weights:
            grouped = query.shape[1] != key.shape[1]
            output = F.scaled_dot_product_attention(query, key, value, mask, scale=self.scale, enable_gqa=grouped)
            return Attended(output, None)
        scale = 1 / math.sqrt(query.shape[-1]) if self.scale is None else self.scale
        return weigh(query * scale @ group(query, key).mT, group(query, value), mask)


class AdditiveScore(nn.Module):
    """Bahdanau's score, a small MLP: score(q, k) = v . tanh(W_q q + W_k k), with its own v, W_q, W_k in each head."""

    def __init__(self, heads: int, head_dim: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = head_dim if hidden is None else hidden
        bound = head_dim**-0.5
        self.query = nn.Parameter(torch.empty(heads, head_dim, hidden).uniform_(-bound, bound))
        self.key = nn.Parameter(torch.empty(heads, head_dim, hidden).uniform_(-bound, bound))
        self.energy = nn.Parameter(torch.empty(heads, hidden).uniform_(-(hidden**-0.5), hidden**-0.5))

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, need_weights: bool = False
    ) -> Attended:
        """Shapes as in `DotProductScore`. Time and memory grow with q * k * hidden: for short sequences."""
        key, value = group(query, key), group(query, value)
        hidden = torch.tanh((query @ self.query)[:, :, :, None] + (key @ self.key)[:, :, None])  # (b, h, q, k, hidden)
        output, weights = weigh((hidden * self.energy[:, None, None]).sum(-1), value, mask)
        return Attended(output, weights if need_weights else None)


def build_score(name: ScoreName, heads: int, head_dim: int, scale: float | None) -> nn.Module:
    """The score function called `name`; `scale` is for the dot product."""
    return AdditiveScore(heads, head_dim) if name == "additive" else DotProductScore(scale)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(b, n, heads * d) -> (b, heads, n, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(b, heads, n, d) -> (b, n, heads * d)."""
    return x.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Attention of a sequence to itself; query, key and value of all heads come from one matrix product."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        score: ScoreName = "dot",
        scale: float | None = None,
        rotary: Rotary | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, heads if kv_heads is None else kv_heads
        self.head_dim = width // heads if head_dim is None else head_dim
        self.query_key_value = nn.Linear(width, (heads + 2 * self.kv_heads) * self.head_dim, bias)
        self.output = nn.Linear(heads * self.head_dim, width, bias)
        self.score = build_score(score, heads, self.head_dim, scale)
        self.rotary = rotary

    def empty(self, inputs: int, slots: int) -> KeyValue:
        """A cache of zeros for so many inputs, of the weights' dtype."""
        shape = (inputs, self.kv_heads, slots, self.head_dim)
        return KeyValue(*(torch.zeros(shape, dtype=self.output.weight.dtype) for _ in range(2)))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        cache: KeyValue | None = None,
        at: Tensor | None = None,
        prefix: KeyValue | None = None,
        need_weights: bool = False,
    ) -> tuple[Attended, KeyValue]:
        """x (b, q, width) -> output (b, q, width), and the keys and values (b, g, k, d) that were attended to.

        With a `cache` of k slots the new keys and values are written into it from slot `at` (b,) on and all k slots
        are attended to, as far as `mask` (b, 1, q, k) lets each query see them. `positions` (b, q) turn the rotary
        embedding, if there is one. A `prefix` (b, g, p, d) is what came before, which every query sees: weights are
        then (b, h, q, p + k), and the prefix is no part of what is returned.
        """
        heads = split_heads(self.query_key_value(x), self.heads + 2 * self.kv_heads)
        query, key, value = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if self.rotary is not None:
            if positions is None:
                positions = torch.arange(x.shape[1], device=x.device)[None]
            query, key = self.rotary(query, positions), self.rotary(key, positions)
        if (cache is None) != (at is None):
            raise ValueError("a cache needs `at`, the slot to write to, and `at` a cache")
        present = KeyValue(key, value)
        if cache is not None and at is not None:
            present = write(cache, present, at)
        key, value = present
        if prefix is not None:
            key, value = torch.cat([prefix.key, key], dim=2), torch.cat([prefix.value, value], dim=2)
            if mask is not None:
                seen = torch.ones(prefix.key.shape[2], dtype=torch.bool, device=mask.device)
                mask = torch.cat([seen.expand(*mask.shape[:-1], -1), mask], dim=-1)
        attended = self.score(query, key, value, mask, need_weights)
        return Attended(self.output(merge_heads(attended.output)), attended.weights), present


class CrossAttention(nn.Module):
    """Attention of one sequence to another, the memory, whose keys and values are computed once and kept."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        memory_width: int | None = None,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        score: ScoreName = "dot",
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, heads if kv_heads is None else kv_heads
        self.head_dim = width // heads if head_dim is None else head_dim
        self.query = nn.Linear(width, heads * self.head_dim, bias)
        memory_width = width if memory_width is None else memory_width
        self.key_value = nn.Linear(memory_width, 2 * self.kv_heads * self.head_dim, bias)
        self.output = nn.Linear(heads * self.head_dim, width, bias)
        self.score = build_score(score, heads, self.head_dim, scale)

    def remember(self, memory: Tensor) -> KeyValue:
        """memory (b, k, memory_width) -> its keys and values (b, g, k, d)."""
        return KeyValue(*(split_heads(part, self.kv_heads) for part in self.key_value(memory).chunk(2, dim=-1)))

    def forward(self, x: Tensor, memory: KeyValue, mask: Tensor | None = None, need_weights: bool = False) -> Attended:
        """x (b, q, width) over `memory`, the result of `remember` -> output (b, q, width)."""
        query = split_heads(self.query(x), self.heads)
        attended = self.score(query, memory.key, memory.value, mask, need_weights)
        return Attended(self.output(merge_heads(attended.output)), attended.weights)
