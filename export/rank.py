"""A decoder that hands over only what search looks at: the largest logits and the sum that makes them probabilities.

A vocabulary of 60,000 logits for each of 32 rows is 8 MB a step that need not leave the graph. The largest are sought
in blocks: they lie in the blocks whose own largest are largest, so only those few are sorted.
"""

from typing import Any

import numpy as np
import onnx_ir as ir

from heedful.export.constants import constant, integers

# about the size of a block, if the vocabulary can be divided by one like it
_BLOCK = 160
_BLOCKS = range(32, 1025)


def rank_logits(model: ir.Model) -> None:
    """Give the decoder `model`, in place, an input `best` (1,) int64, how many logits of each row are wanted.

    Its outputs, beside `logits` (m, vocabulary): `best_logits` (m, best) float32 in falling order, their `best_tokens`
    (m, best) int64, and `total` (m,) float32, log(sum(exp(logits))).
    """
    logits = next(value for value in model.graph.outputs if value.name == "logits")
    best = ir.Value(name="best", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    model.graph.inputs.append(best)
    size = _block(logits)
    nodes, largest, tokens = _in_blocks(model, logits, best, size) if size else _among_all(logits, best)
    last = integers(model, [-1])
    highest = ir.node("Gather", [largest, integers(model, [0])], {"axis": 1})
    shifted = ir.node("Sub", [logits, highest.outputs[0]])
    exponential = ir.node("Exp", shifted.outputs)
    summed = ir.node("ReduceSum", [exponential.outputs[0], last], {"keepdims": 1})
    logarithm = ir.node("Log", summed.outputs)
    raised = ir.node("Add", [logarithm.outputs[0], highest.outputs[0]])
    total = ir.node("Squeeze", [raised.outputs[0], last])
    model.graph.extend([*nodes, highest, shifted, exponential, summed, logarithm, raised, total])
    rows = logits.shape[0] if logits.shape is not None else None
    outputs: list[tuple[str, ir.Value, ir.DataType, list[Any]]] = [
        ("best_logits", largest, ir.DataType.FLOAT, [rows, "best"]),
        ("best_tokens", tokens, ir.DataType.INT64, [rows, "best"]),
        ("total", total.outputs[0], ir.DataType.FLOAT, [rows]),
    ]
    for name, value, kind, shape in outputs:
        value.name, value.type, value.shape = name, ir.TensorType(kind), ir.Shape(shape)
        model.graph.outputs.append(value)


Ranked = tuple[list[ir.Node], ir.Value, ir.Value]


def _block(logits: ir.Value) -> int | None:
    """The divisor of the vocabulary that is nearest to the block wanted; None if all are far from it."""
    vocabulary = None if logits.shape is None else logits.shape[1]
    if not isinstance(vocabulary, int):
        return None
    divisors = [size for size in _BLOCKS if vocabulary % size == 0 and vocabulary > size]
    return min(divisors, key=lambda size: abs(size - _BLOCK), default=None)


def _among_all(logits: ir.Value, best: ir.Value) -> Ranked:
    largest = ir.node("TopK", [logits, best], {"axis": -1}, num_outputs=2)
    return [largest], largest.outputs[0], largest.outputs[1]


def _in_blocks(model: ir.Model, logits: ir.Value, best: ir.Value, size: int) -> Ranked:
    assert logits.shape is not None
    count = int(logits.shape[1]) // size  # type: ignore[arg-type]
    last = integers(model, [-1])
    unit = constant(model, "block.size", np.asarray(size, np.int64))
    blocks = ir.node("Reshape", [logits, integers(model, [0, count, size])])
    highest = ir.node("ReduceMax", [blocks.outputs[0], last], {"keepdims": 0})
    enough = ir.node("Min", [best, integers(model, [count])])
    chosen = ir.node("TopK", [highest.outputs[0], enough.outputs[0]], {"axis": -1}, num_outputs=2)
    # in the order of the vocabulary, so that of equal logits the first comes first, as among all
    order = ir.node("TopK", [chosen.outputs[1], enough.outputs[0]], {"axis": -1, "largest": 0}, num_outputs=2)
    index = ir.node("Unsqueeze", [order.outputs[0], last])
    near = ir.node("GatherND", [blocks.outputs[0], index.outputs[0]], {"batch_dims": 1})
    flat = ir.node("Reshape", [near.outputs[0], integers(model, [0, -1])])
    largest = ir.node("TopK", [flat.outputs[0], best], {"axis": -1}, num_outputs=2)
    which = ir.node("Div", [largest.outputs[1], unit])
    within = ir.node("Mod", [largest.outputs[1], unit])
    block = ir.node("GatherElements", [order.outputs[0], which.outputs[0]], {"axis": 1})
    start = ir.node("Mul", [block.outputs[0], unit])
    tokens = ir.node("Add", [start.outputs[0], within.outputs[0]])
    nodes = [blocks, highest, enough, chosen, order, index, near, flat, largest, which, within, block, start, tokens]
    return nodes, largest.outputs[0], tokens.outputs[0]
