"""A speech decoder that hands over what Whisper's rules leave of its logits, so that the host need not read them all.

The rules are those of runtime/speech/timestamps.py, and that some tokens are never written. What they say of a text
before any logits are known, the input `rule`, is one of two things: text may go on, or a segment is being closed, by
the end token or a timestamp; and which timestamp is the earliest. What opens a window is left to the host.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from heedful.export.constants import Nodes, constant
from heedful.export.rank import BLOCK, Ranked, columns, hand_over, in_order, rank
from heedful.export.refine import Refined, refine_logits

# what is ruled out, where infinity would be subtracted from itself
_LOWEST = float(np.finfo(np.float32).min)


def rank_speech(model: ir.Model, speech: Mapping[str, Any]) -> None:
    """Have the decoder `model`, in place, `hand_over` its best logits by the rules; `speech` is a part of bundle.json.

    Its input `rule` (m, 2) int64 has for each row whether a segment is being closed, and the first of the timestamps
    that may come. Its outputs `best_logits`, `best_tokens` and `allowed` are of what may come, `total` is of all. Where
    an embedding in blocks is the matrix of its logits, they are refined (export/refine.py).
    """
    logits = next(value for value in model.graph.outputs if value.name == "logits")
    assert logits.shape is not None
    rule = ir.Value(name="rule", shape=ir.Shape([logits.shape[0], 2]), type=ir.TensorType(ir.DataType.INT64))
    end, product = speech["tokens"]["end"], logits.producer()
    # whole blocks, of which the best are sought
    bound = end // BLOCK * BLOCK or end
    if product is None or product.op_type != "MatMulNBits":
        hand_over(model, partial(_rank, source=_Whole(logits, bound), rule=rule, speech=speech), rule)
        return
    refined = refine_logits(model, logits, bound)
    hand_over(model, partial(_rank, source=refined, rule=rule, speech=speech), rule, whole=refined.whole)
    model.graph.remove(product, safe=True)


@dataclass(frozen=True)
class _Whole:
    """`logits` that are all as exact as each other."""

    logits: ir.Value
    bound: int

    def text(self, nodes: Nodes, barred: ir.Value, best: ir.Value) -> Ranked:
        """What `rank` says of the first `bound` tokens less those that are `barred` by minus infinity."""
        text = self._part(nodes, 0, self.bound)
        ruled = nodes("Add", text, barred)
        ruled.shape, ruled.type = text.shape, text.type
        return rank(nodes, ruled, nodes("Min", best, nodes.integers(self.bound)))

    def rest(self, nodes: Nodes) -> ir.Value:
        """The logits of the others."""
        assert self.logits.shape is not None
        return self._part(nodes, self.bound, int(self.logits.shape[1]))  # type: ignore[arg-type]

    def _part(self, nodes: Nodes, start: int, end: int) -> ir.Value:
        return columns(nodes, self.logits, lambda value: _slice(nodes, value, start, end), end - start)

    def of(self, nodes: Nodes, tokens: ir.Value, count: int) -> ir.Value:
        """The logits of so many tokens."""
        return columns(nodes, self.logits, lambda value: nodes("Gather", value, tokens, axis=1), count)


def _rank(
    nodes: Nodes,
    logits: ir.Value,
    best: ir.Value,
    *,
    source: _Whole | Refined,
    rule: ir.Value,
    speech: Mapping[str, Any],
) -> Ranked:
    assert logits.shape is not None
    tokens, size, bound = speech["tokens"], int(logits.shape[1]), source.bound  # type: ignore[arg-type]
    end, first = tokens["end"], tokens["first_timestamp"]
    never = sorted({*(token for token in speech["suppress"] if token < first), tokens["no_timestamps"]})
    words = source.text(nodes, _barred(nodes, never, 0, bound), best)
    rest = source.rest(nodes)
    tail = nodes("Add", _slice(nodes, rest, 0, first - bound), _barred(nodes, never, bound, first))

    closing, earliest = (nodes("Gather", rule, nodes.integers(i), axis=1) for i in range(2))
    closing = nodes("Greater", closing, nodes.integers(0))
    # infinity would be subtracted from itself where a sum is of nothing else
    lowest = nodes.number(_LOWEST)
    not_end = nodes("And", closing, constant(nodes.model, "speech.not_end", np.arange(bound, first) < end))
    tail = nodes("Where", not_end, lowest, tail)
    text = nodes("Concat", nodes("Where", closing, lowest, words.logits), tail, axis=1)
    may = nodes("GreaterOrEqual", constant(nodes.model, "speech.stamps", np.arange(first, size)), earliest)
    stamps = nodes("Where", may, _slice(nodes, rest, first - bound, size - bound), lowest)

    of_words = nodes("Unsqueeze", words.total, nodes.integers(-1))
    of_text = _total(nodes, nodes("Where", closing, lowest, of_words), tail)
    of_stamps = _total(nodes, stamps)
    outweighed = nodes("Greater", of_stamps, nodes("ReduceMax", text, nodes.integers(-1), keepdims=1))
    left = nodes("Concat", nodes("Where", outweighed, lowest, text), stamps, axis=1)
    found, place = in_order(nodes, left, best)
    found = nodes("Where", nodes("Greater", found, lowest), found, nodes.number(-np.inf))
    allowed = _total(nodes, nodes("Where", outweighed, lowest, of_text), of_stamps, keepdims=0)
    unwritten = np.array([token for token in never if token < bound], np.int64)
    others = source.of(nodes, constant(nodes.model, "speech.unwritten", unwritten), len(unwritten))
    total = _total(nodes, of_words, rest, others, keepdims=0)
    return Ranked(found, _names(nodes, words.tokens, place, bound), total, allowed)


def _names(nodes: Nodes, words: ir.Value, place: ir.Value, bound: int) -> ir.Value:
    """The tokens at `place` (m, best) in a row of `words` (m, k) and all tokens from `bound` on."""
    count = nodes("Shape", words, start=1, end=2)
    among = nodes("GatherElements", words, nodes("Min", place, nodes("Sub", count, nodes.integers(1))), axis=1)
    behind = nodes("Add", place, nodes("Sub", nodes.integers(bound), count))
    return nodes("Where", nodes("Less", place, count), among, behind)


def _barred(nodes: Nodes, never: list[int], start: int, end: int) -> ir.Value:
    """Minus infinity for the tokens of `never` among `start` ... `end` - 1, nothing for the others."""
    barred = np.zeros(end - start, np.float32)
    barred[[token - start for token in never if start <= token < end]] = -np.inf
    return constant(nodes.model, f"speech.barred.{start}", barred)


def _total(nodes: Nodes, *logits: ir.Value, keepdims: int = 1) -> ir.Value:
    """log(sum(exp(logits))) of few logits (m, n) side by side: (m, 1), or (m,)."""
    together = logits[0] if len(logits) == 1 else nodes("Concat", *logits, axis=1)
    return nodes("ReduceLogSumExp", together, nodes.integers(-1), keepdims=keepdims)


def _slice(nodes: Nodes, logits: ir.Value, start: int, end: int) -> ir.Value:
    return nodes("Slice", logits, nodes.integers(start), nodes.integers(end), nodes.integers(1))
