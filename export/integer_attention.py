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

import numpy as np
import onnx_ir as ir

from heedful.export.constants import MICROSOFT, Nodes, constant

_PRODUCT = "MatMulIntegerToFloat"
# what is zero throughout is divided too
_LEAST = 1e-12


def quantize_attention(model: ir.Model, pattern: str = "") -> None:
    """Put integer products in place of every `MultiHeadAttention` without a mask (export/flash.py).

    Only of nodes whose name has `pattern`, a regular expression, in it.
    """
    for node in [node for node in model.graph if node.op_type == "MultiHeadAttention"]:
        if len(node.inputs) == 3 and re.search(pattern, node.name or ""):
            new = IntegerNodes(model)
            result = _attention(new, node)
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], new.made, [node.outputs[0]], [result])


class IntegerNodes(Nodes):
    """Those that attention in integers takes."""

    def apart(self, value: ir.Value, axis: int, count: int) -> list[ir.Value]:
        """`value` cut into `count` parts of size 1 along `axis`."""
        self.made.append(ir.node("Split", [value, self.integers(*[1] * count)], {"axis": axis}, num_outputs=count))
        return list(self.made[-1].outputs)

    def number(self, number: float) -> ir.Value:
        return constant(self.model, f"number.{number!r}", np.asarray(number, np.float32))

    def unsigned(self, number: int) -> ir.Value:
        return constant(self.model, f"unsigned.{number}", np.asarray(number, np.uint8))

    def signed(self, number: int) -> ir.Value:
        return constant(self.model, f"signed.{number}", np.asarray(number, np.int8))

    def mean(self, value: ir.Value | None) -> ir.Value:
        """The mean over the frames of `value` (b, n, width), as a product, since the operator for it is slower."""
        frames = self("Shape", value, start=1, end=2)
        ones = self("Expand", self.number(1.0), self("Concat", self.integers(1), frames, axis=0))
        return self("Div", self("MatMul", ones, value), self("Cast", frames, to=ir.DataType.FLOAT))

    def quantized(self, value: ir.Value, axes: ir.Value, zero: ir.Value, most: int) -> tuple[ir.Value, ir.Value]:
        """`value` as integers, up to `most` away from `zero`, and what a unit stands for, one number along `axes`."""
        largest = self("ReduceMax", self("Abs", value), axes, keepdims=1)
        unit = self("Max", self("Mul", largest, self.number(1 / most)), self.number(_LEAST))
        return self("QuantizeLinear", self("Div", value, unit), self.number(1.0), zero), unit


def _attention(new: IntegerNodes, node: ir.Node) -> ir.Value:
    """What `node` computes of queries, keys and values (b, n, h * d): (b, n, h * d)."""
    heads = node.attributes["num_heads"].as_int()
    split = new.integers(0, 0, heads, -1)
    centred = new("Sub", node.inputs[1], new.mean(node.inputs[1]))
    # (b, n, h, d)
    query, key, value = (new("Reshape", each, split) for each in (node.inputs[0], centred, node.inputs[2]))
    queries, query_unit = new.quantized(query, new.integers(0, 1, 3), new.unsigned(64), 63)
    query_unit = new("Mul", query_unit, new.number(node.attributes["scale"].as_float()))
    keys, key_unit = new.quantized(key, new.integers(3), new.signed(0), 127)
    values, value_unit = new.quantized(value, new.integers(1), new.signed(0), 64)
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
    query_units = new.apart(new("Reshape", query_unit, new.integers(heads)), 0, heads)
    return new("Concat", *(_head(new, *each) for each in zip(query_units, *parts, strict=True)), axis=-1)


def _head(
    new: IntegerNodes,
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
    unit = new("Mul", new("ReduceMax", weights, new.integers(-1), keepdims=1), new.number(1 / 255))
    # a scale for each query: those of all inputs are one list for this
    whole = new("QuantizeLinear", new("Flatten", weights, axis=-1), new("Reshape", unit, new.integers(-1)), axis=0)
    back = new("Reshape", whole, new("Shape", scores))
    mixed = new(_PRODUCT, back, values, new.number(1.0), value_unit, new.unsigned(0), domain=MICROSOFT)
    return new("Squeeze", new("Mul", mixed, unit), new.integers(1))
