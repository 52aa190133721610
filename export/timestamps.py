"""A speech decoder that hands over what Whisper's rules leave of its logits, so that the host need not read them all.

The rules are those of runtime/speech/timestamps.py, and that some tokens are never written. What they say of a text
before any logits are known, the input `rule`, is one of two things: text may go on, or a segment is being closed, by
the end token or a timestamp; and which timestamp is the earliest. What opens a window is left to the host.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from heedful.export.constants import Nodes, constant
from heedful.export.rank import BLOCK, Ranked, columns, hand_over, in_order, rank

# what is ruled out, where infinity would be subtracted from itself
_LOWEST = float(np.finfo(np.float32).min)


def rank_speech(model: ir.Model, speech: Mapping[str, Any]) -> None:
    """Have the decoder `model`, in place, `hand_over` its best logits by the rules; `speech` is a part of bundle.json.

    Its input `rule` (m, 2) int64 has for each row whether a segment is being closed, and the first of the timestamps
    that may come. Its outputs `best_logits`, `best_tokens` and `allowed` are of what may come, `total` is of all.
    """
    logits = next(value for value in model.graph.outputs if value.name == "logits")
    assert logits.shape is not None
    rule = ir.Value(name="rule", shape=ir.Shape([logits.shape[0], 2]), type=ir.TensorType(ir.DataType.INT64))
    hand_over(model, partial(_rank, rule=rule, speech=speech), rule)


def _rank(nodes: Nodes, logits: ir.Value, best: ir.Value, *, rule: ir.Value, speech: Mapping[str, Any]) -> Ranked:
    assert logits.shape is not None
    size, tokens = int(logits.shape[1]), speech["tokens"]  # type: ignore[arg-type]
    end, stop, first = tokens["end"], tokens["no_timestamps"], tokens["first_timestamp"]
    never = [token for token in speech["suppress"] if token < stop]
    text = _text(nodes, logits, stop, never)
    words = rank(nodes, text, nodes("Min", best, nodes.integers(stop)))
    ends = _best(nodes, _slice(nodes, text, end, stop), best, end, stop)

    closing, earliest = (nodes("Gather", rule, nodes.integers(i), axis=1) for i in range(2))
    closing = nodes("Greater", closing, nodes.integers(0))
    lowest, out = nodes.number(_LOWEST), nodes.number(-np.inf)
    all_stamps = columns(nodes, logits, lambda value: _slice(nodes, value, first, size), size - first)
    may = nodes("GreaterOrEqual", constant(nodes.model, "speech.stamps", np.arange(first, size)), earliest)
    stamps = nodes("Where", may, all_stamps, lowest)
    marks = _best(nodes, stamps, best, first, size)

    of_words, of_ends, of_marks, of_stamps = (
        nodes("Unsqueeze", total, nodes.integers(-1))
        for total in (words.total, ends.total, marks.total, _total(nodes, all_stamps))
    )
    likeliest = nodes("Where", closing, *(_slice(nodes, each.logits, 0, 1) for each in (ends, words)))
    outweighed = nodes("Greater", of_marks, likeliest)
    left = [
        nodes("Where", nodes("Or", closing, outweighed), out, words.logits),
        nodes("Where", nodes("And", closing, nodes("Not", outweighed)), ends.logits, out),
        nodes("Where", nodes("Greater", marks.logits, lowest), marks.logits, out),
    ]
    found, place = in_order(nodes, nodes("Concat", *left, axis=1), best)
    names = nodes("GatherElements", nodes("Concat", words.tokens, ends.tokens, marks.tokens, axis=1), place, axis=1)

    unwritten = constant(nodes.model, "speech.unwritten", np.array([*never, stop], np.int64))
    others = columns(nodes, logits, lambda value: nodes("Gather", value, unwritten, axis=1), len(never) + 1)
    of_text = nodes("Where", outweighed, lowest, nodes("Where", closing, of_ends, of_words))
    sums = [nodes("Concat", *parts, axis=1) for parts in ((of_words, of_stamps, others), (of_text, of_marks))]
    return Ranked(found, names, *(_total(nodes, each) for each in sums))


def _text(nodes: Nodes, logits: ir.Value, stop: int, never: list[int]) -> ir.Value:
    """The logits of all tokens before `stop`, and a few behind it; those, and those at `never`, are minus infinity."""
    assert logits.shape is not None
    # whole blocks
    width = min(int(logits.shape[1]), -(-stop // BLOCK) * BLOCK)  # type: ignore[arg-type]
    text = columns(nodes, logits, lambda value: _slice(nodes, value, 0, width), width)
    barred = np.zeros(width, np.float32)
    barred[[*never, *range(stop, width)]] = -np.inf
    ruled = nodes("Add", text, constant(nodes.model, "speech.barred", barred))
    ruled.shape, ruled.type = text.shape, text.type
    return ruled


def _best(nodes: Nodes, logits: ir.Value, best: ir.Value, first: int, end: int) -> Ranked:
    """What `rank` says of the logits of the tokens `first` ... `end` - 1, which are few, so that fewer nodes do."""
    found, tokens = in_order(nodes, logits, nodes("Min", best, nodes.integers(end - first)))
    return Ranked(found, nodes("Add", tokens, nodes.integers(first)), _total(nodes, logits))


def _total(nodes: Nodes, logits: ir.Value) -> ir.Value:
    """log(sum(exp(logits))) of few logits (m, n): (m,)."""
    return nodes("ReduceLogSumExp", logits, nodes.integers(-1), keepdims=0)


def _slice(nodes: Nodes, logits: ir.Value, start: int, end: int) -> ir.Value:
    return nodes("Slice", logits, nodes.integers(start), nodes.integers(end), nodes.integers(1))
