"""Self-attention of an encoder in products of 8-bit integers, head by head.

softmax(Q K^T) V takes half of the time of a speech encoder in float32, at the peak of the multipliers. In integers the
two products take a quarter of that, and the scores of one head stay in the cache on their way from one to the other.

- Queries have a scale a head. Keys have one a frame, which is one a column of the scores. Their mean over the frames is
  taken away first: it adds the same to all scores of a query, which the softmax takes out again, and leaves smaller
  numbers to round. Source: Zhang et al. 2024, SageAttention, arXiv 2410.02367.
- Weights have a scale a query, so that the largest is 255 however many keys share them; values have one a channel.

Queries and values have 7 bits: the sum of two products then fits into the 16 bits in which x86 without VNNI adds them
up, so that they are exact on every CPU. Weights need their 8 bits more than values do.
"""

import re

import onnx_ir as ir

from heedful.export.constants import MICROSOFT
from heedful.export.integer_nodes import IntegerNodes, divisor

_PRODUCT = "MatMulIntegerToFloat"
# frames are cut into so many at most, whose largest are sought first
_MOST_PARTS = 64


def quantize_attention(model: ir.Model, pattern: str = "") -> None:
    """Put integer products in place of every `MultiHeadAttention` without a mask (export/flash.py).

    Only of nodes whose name has `pattern`, a regular expression, in it.
    """
    for node in [node for node in model.graph if node.op_type == "MultiHeadAttention"]:
        if len(node.inputs) == 3 and re.search(pattern, node.name or ""):
            new = IntegerNodes(model)
            result = _attention(new, node)
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], new.made, [node.outputs[0]], [result])


def _attention(new: IntegerNodes, node: ir.Node) -> ir.Value:
    """What `node` computes of queries, keys and values (b, n, h * d): (b, n, h * d)."""
    rows = node.inputs[1]
    assert rows is not None
    assert rows.shape is not None
    heads = node.attributes["num_heads"].as_int()
    frames, dim = int(rows.shape[1]), int(rows.shape[2]) // heads  # type: ignore[arg-type]
    cut = new.integers(0, 0, heads, dim)
    # (b, n, h, d)
    query, key, value = (
        new("Reshape", each, cut) for each in (node.inputs[0], new.centred(rows, frames), node.inputs[2])
    )
    key_unit = new.unit(new.largest(key, -1), 127)
    keys = new.of_rows(key, dim, key_unit)
    query_unit = new.unit(new.largest(query, 0, 1, 3), 63)
    each_row = new("Shape", key_unit)
    zeros = new("Expand", new.unsigned(64), each_row)
    queries = new.of_rows(query, dim, new("Expand", query_unit, each_row), zeros, ir.DataType.UINT8)
    value_unit = new.unit(_over_frames(new, value, frames, (heads, dim)), 64)
    values = new.of_columns(value, value_unit)
    row_by_row, column_by_column = [0, 2, 1, 3], [0, 2, 3, 1]
    parts = [
        new.apart(new("Transpose", each, perm=order), 1, heads)
        for each, order in (
            (queries, row_by_row),  # (b, 1, n, d) each
            (keys, column_by_column),  # (b, 1, d, n)
            (key_unit, column_by_column),  # (b, 1, 1, n)
            (values, row_by_row),  # (b, 1, n, d)
            (value_unit, row_by_row),  # (b, 1, 1, d)
        )
    ]
    scaled = new("Mul", query_unit, new.number(node.attributes["scale"].as_float(), 4))
    query_units = new.apart(new("Reshape", scaled, new.integers(heads)), 0, heads)
    found = (_head(new, frames, *each) for each in zip(query_units, *parts, strict=True))
    return new("Concat", *found, axis=-1)


def _over_frames(new: IntegerNodes, value: ir.Value, frames: int, size: tuple[int, int]) -> ir.Value:
    """The largest of `value` (b, frames, *size) over all frames, (b, 1, *size)."""
    # in two steps: over an axis before which there is nothing, onnxruntime takes ten times as long
    parts = divisor(frames, _MOST_PARTS)
    apart = new("Reshape", value, new.integers(0, parts, frames // parts, size[0] * size[1]))
    of_parts = new.largest(apart, 2)
    return new("Reshape", new("ReduceMax", of_parts, new.integers(1), keepdims=1), new.integers(0, 1, *size))


def _head(
    new: IntegerNodes,
    frames: int,
    query_unit: ir.Value,
    queries: ir.Value,
    keys: ir.Value,
    key_unit: ir.Value,
    values: ir.Value,
    value_unit: ir.Value,
) -> ir.Value:
    """One head's part of the output, (b, n, d)."""
    scores = new(_PRODUCT, queries, keys, query_unit, key_unit, new.unsigned(64), domain=MICROSOFT)
    weights = new("Softmax", scores, axis=-1)  # (b, 1, n, n)
    unit = new.unit(new("ReduceMax", weights, new.integers(-1), keepdims=1), 255, least=0)
    whole = new.of_rows(weights, frames, unit, kind=ir.DataType.UINT8)
    mixed = new(_PRODUCT, whole, values, new.number(1.0), value_unit, new.unsigned(0), domain=MICROSOFT)
    return new("Squeeze", new("Mul", mixed, unit), new.integers(1))
