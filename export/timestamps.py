"""A speech decoder that hands over what Whisper's rules leave of its logits, so that the host need not read them all.

The rules are those of runtime/speech/timestamps.py, and that some tokens are never written. What they say of a text
before any logits are known, the input `rule`, is one of two things: text may go on, or a segment is being closed, by
the end token or a timestamp; and which timestamp is the earliest. What opens a window is left to the host.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from heedful.export.constants import Nodes, constant
from heedful.export.logits import Part, Parts, columns_of, cut, product_of
from heedful.export.rank import BLOCK, Ranked, hand_over, in_order, log_total, rank_made
from heedful.export.refine import Refined, bars, refine_logits

# what is ruled out, where infinity would be subtracted from itself
_LOWEST = float(np.finfo(np.float32).min)


class _Tokens(NamedTuple):
    """The vocabulary: text, of which `bound` tokens are whole blocks, the `end` token, others up to the `first`
    timestamp, timestamps up to its `size`; and the tokens before those that `never` come.
    """

    bound: int
    end: int
    first: int
    size: int
    never: Sequence[int]


def rank_speech(model: ir.Model, speech: Mapping[str, Any], row_by_row: bool = False) -> None:
    """Have the decoder `model`, in place, `hand_over` its best logits by the rules; `speech` is a part of bundle.json.

    Its input `rule` (m, 2) int64 has for each row whether a segment is being closed, and the first of the timestamps
    that may come. Its outputs `best_logits`, `best_tokens` and `allowed` are of what may come, `total` is of all. With
    `row_by_row` the text's logits of many rows are ranked one row at a time. Where an embedding in blocks is the matrix
    of its logits, they are refined (export/refine.py): such a decoder is for greedy search, its best is one token,
    whatever `best` is, and its `total` of what may come.
    """
    logits = next(value for value in model.graph.outputs if value.name == "logits")
    assert logits.shape is not None
    rule = ir.Value(name="rule", shape=ir.Shape([logits.shape[0], 2]), type=ir.TensorType(ir.DataType.INT64))
    tokens = _tokens(speech, columns_of(logits))
    product = product_of(logits)[0].producer()
    assert product is not None
    if product.op_type == "MatMulNBits":
        refined = refine_logits(model, logits, tokens.bound, tokens.never)
        hand_over(model, lambda nodes, *_: _choose(nodes, refined, tokens, rule), rule, everything=refined.everything)
    else:
        parts = cut(model, logits, tokens.bound)
        ranker = partial(_rank, parts=parts, tokens=tokens, rule=rule, row_by_row=row_by_row)
        hand_over(model, ranker, rule, everything=parts.everything)
    model.graph.remove(product, safe=True)


def _tokens(speech: Mapping[str, Any], size: int) -> _Tokens:
    end, first, stop = (speech["tokens"][name] for name in ("end", "first_timestamp", "no_timestamps"))
    never = sorted({stop, *(token for token in speech["suppress"] if token < first)})
    return _Tokens(end // BLOCK * BLOCK or end, end, first, size, never)


def _rank(
    nodes: Nodes, _: ir.Value, best: ir.Value, *, parts: Parts, tokens: _Tokens, rule: ir.Value, row_by_row: bool
) -> Ranked:
    """The `best` of what may come."""
    bound, first = tokens.bound, tokens.first

    def written(within: Nodes, part: Part) -> ir.Value:
        text = parts.before(within, part)
        ruled = within("Add", text, _barred(within, tokens, 0, bound))
        ruled.shape, ruled.type = text.shape, text.type
        return ruled

    wanted = nodes("Min", best, nodes.integers(bound))
    words = rank_made(nodes, parts.text, wanted, written, row_by_row=row_by_row)
    rest = parts.behind(nodes)
    tail = nodes("Add", _slice(nodes, rest, 0, first - bound), _barred(nodes, tokens, bound, first))

    closing = nodes("Greater", nodes("Gather", rule, nodes.integers(0), axis=1), nodes.integers(0))
    # infinity would be subtracted from itself where a sum is of nothing else
    lowest = nodes.number(_LOWEST)
    not_end = nodes("And", closing, constant(nodes.model, "speech.not_end", np.arange(bound, first) < tokens.end))
    tail = nodes("Where", not_end, lowest, tail)
    text = nodes("Concat", nodes("Where", closing, lowest, words.logits), tail, axis=1)
    stamps = _stamps(nodes, rest, tokens, rule)

    of_words = nodes("Unsqueeze", words.total, nodes.integers(-1))
    of_text = _total(nodes, nodes("Where", closing, lowest, of_words), tail)
    of_stamps = log_total(nodes, stamps)
    outweighed = nodes("Greater", of_stamps, nodes("ReduceMax", text, nodes.integers(-1), keepdims=1))
    left = nodes("Concat", nodes("Where", outweighed, lowest, text), stamps, axis=1)
    found, place = in_order(nodes, left, best)
    found = nodes("Where", nodes("Greater", found, lowest), found, nodes.number(-np.inf))
    allowed = _total(nodes, nodes("Where", outweighed, lowest, of_text), of_stamps, keepdims=0)
    others = parts.few(nodes, [token for token in tokens.never if token < bound])
    total = log_total(nodes, nodes("Concat", of_words, rest, others, axis=1))
    found_tokens = _names(nodes, words.tokens, place, bound)
    return Ranked(found, found_tokens, nodes("Squeeze", total, nodes.integers(-1)), allowed)


def _choose(nodes: Nodes, refined: Refined, tokens: _Tokens, rule: ir.Value) -> Ranked:
    """The likeliest token that may come, in as few nodes as can be: a step of one row is made of them."""
    bound, first, one = tokens.bound, tokens.first, nodes.integers(1)
    words = refined.likeliest(nodes)
    tail = _slice(nodes, refined.behind, 0, first - bound)
    # of the likeliest word and all tokens behind the words those before the end token may not come where a segment is
    # being closed
    closed = np.where(np.arange(bound - 1, first) < tokens.end, np.float32(_LOWEST), np.float32(0))
    choices = constant(nodes.model, "speech.bars", np.stack([np.zeros_like(closed), closed]))
    closing = nodes("Gather", rule, constant(nodes.model, "speech.closing", np.asarray(0, np.int64)), axis=1)
    bar = nodes("Gather", choices, closing, axis=0)
    text, place = in_order(nodes, nodes("Add", nodes("Concat", words.logit, tail, axis=1), bar), one)
    is_word = nodes("Equal", place, nodes.integers(0))
    name = nodes("Where", is_word, words.token, nodes("Add", place, nodes.integers(bound - 1)))

    stamps = _stamps(nodes, refined.behind, tokens, rule)
    of_stamps = _total(nodes, stamps)
    stamp, place = in_order(nodes, stamps, one)
    outweighed = nodes("Greater", of_stamps, text)
    found = nodes("Where", outweighed, stamp, text)
    token = nodes("Where", outweighed, nodes("Add", place, nodes.integers(first)), name)
    together = _total(nodes, nodes("Add", nodes("Concat", words.total, tail, axis=1), bar), of_stamps)
    total = nodes("Where", outweighed, of_stamps, together)
    return Ranked(found, token, nodes("Squeeze", total, nodes.integers(-1)))


def _stamps(nodes: Nodes, rest: ir.Value, tokens: _Tokens, rule: ir.Value) -> ir.Value:
    """The logits of the timestamps, of `rest` from the bound on, those too early the lowest of numbers."""
    earliest = nodes("Gather", rule, nodes.integers(1), axis=1)
    may = nodes(
        "GreaterOrEqual", constant(nodes.model, "speech.stamps", np.arange(tokens.first, tokens.size)), earliest
    )
    stamps = _slice(nodes, rest, tokens.first - tokens.bound, tokens.size - tokens.bound)
    return nodes("Where", may, stamps, nodes.number(_LOWEST))


def _names(nodes: Nodes, words: ir.Value, place: ir.Value, bound: int) -> ir.Value:
    """The tokens at `place` (m, best) in a row of `words` (m, k) and all tokens from `bound` on."""
    count = nodes("Shape", words, start=1, end=2)
    among = nodes("GatherElements", words, nodes("Min", place, nodes("Sub", count, nodes.integers(1))), axis=1)
    behind = nodes("Add", place, nodes("Sub", nodes.integers(bound), count))
    return nodes("Where", nodes("Less", place, count), among, behind)


def _barred(nodes: Nodes, tokens: _Tokens, start: int, end: int) -> ir.Value:
    """What bars those of the tokens `start` ... `end` - 1 that never come."""
    return constant(nodes.model, f"speech.barred.{start}", bars(tokens.never, tokens.first)[start:end])


def _total(nodes: Nodes, *logits: ir.Value, keepdims: int = 1) -> ir.Value:
    """log(sum(exp(logits))) of few logits (m, n) side by side: (m, 1), or (m,). From some hundreds on, for several
    rows, `log_total` takes a quarter of the time.
    """
    together = logits[0] if len(logits) == 1 else nodes("Concat", *logits, axis=1)
    return nodes("ReduceLogSumExp", together, nodes.integers(-1), keepdims=keepdims)


def _slice(nodes: Nodes, logits: ir.Value, start: int, end: int) -> ir.Value:
    return nodes("Slice", logits, nodes.integers(start), nodes.integers(end), nodes.integers(1))
