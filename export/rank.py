"""A decoder that hands over what search looks at: the largest logits, and the sum that makes logits probabilities.

onnxruntime sums up a vocabulary of exponentials in a third of the time that numpy takes, forty of them in a tenth. A
vocabulary of 60,000 logits for each of 32 rows is 8 MB a step that need not leave the graph. The largest are sought in
blocks: they lie in the blocks whose own largest are largest, so only those few are sorted.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from heedful.export.constants import Nodes, constant
from heedful.export.logits import Part, again, columns_of, product_of, whole

# about the size of a block, if the vocabulary can be divided by one like it
BLOCK = 160
_BLOCKS = range(32, 1025)
# rows that are ranked together even where many are ranked one by one: all threads have a part in each node then
_TOGETHER = 8


class Ranked(NamedTuple):
    """What is said of m rows: logits (m, best), tokens (m, best), log(sum(exp(logits))) (m,) of all tokens, and, where
    a graph knows rules, of those that they allow.
    """

    logits: ir.Value
    tokens: ir.Value
    total: ir.Value
    allowed: ir.Value | None = None


Ranker = Callable[[Nodes, ir.Value, ir.Value], Ranked]
"""Makes nodes for logits and how many of each row are wanted."""
Everything = Callable[[Nodes], ir.Value]
"""Makes nodes for all logits."""
Make = Callable[[Nodes, Part], ir.Value]
"""Makes nodes for the logits of some rows."""

# of what is said of rows: dtypes, and axes beside that of the rows
_OUTPUTS: dict[str, tuple[ir.DataType, list[str]]] = {
    "best_logits": (ir.DataType.FLOAT, ["best"]),
    "best_tokens": (ir.DataType.INT64, ["best"]),
    "total": (ir.DataType.FLOAT, []),
    "allowed": (ir.DataType.FLOAT, []),
}


def rank_logits(model: ir.Model, *, row_by_row: bool = False) -> None:
    """Have the decoder `model`, in place, `hand_over` its best logits. With `row_by_row` many rows are ranked one at a
    time, so that the logits of each stay in a core's cache.
    """

    def ranker(nodes: Nodes, logits: ir.Value, best: ir.Value) -> Ranked:
        product, _ = product_of(logits)
        return rank_made(nodes, product, best, lambda within, part: again(within, logits, part), row_by_row=row_by_row)

    hand_over(model, ranker)


def hand_over(model: ir.Model, ranker: Ranker, *inputs: ir.Value, everything: Everything | None = None) -> None:
    """Give the decoder `model`, in place, an input `best` (1,) int64, how many logits of each row are wanted.

    Its outputs, beside `logits` (m, vocabulary): `best_logits` (m, best) float32 in falling order, their `best_tokens`
    (m, best) int64, `total` (m,) float32, log(sum(exp(logits))), and `allowed` (m,), if `ranker` says so, which may
    read further `inputs`. If `best` is 0 the first two are empty, otherwise `logits` is, since onnxruntime computes
    what nobody asks for too.
    """
    graph = model.graph
    logits = next(value for value in graph.outputs if value.name == "logits")
    logits.name = "logits.all"
    count = logits.shape[0] if logits.shape is not None else None
    best = ir.Value(name="best", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    graph.inputs.extend([best, *inputs])
    choice = _choice(model, logits, best, ranker, everything or (lambda nodes: again(nodes, logits)))
    unranked, *said = choice.outputs
    unranked.name, unranked.type, unranked.shape = "logits", ir.TensorType(ir.DataType.FLOAT), logits.shape
    graph.outputs[graph.outputs.index(logits)] = unranked
    for node in reversed(product_of(logits)[1]):
        graph.remove(node, safe=True)
    # not every ranker says all of it
    for value, (name, (kind, axes)) in zip(said, _OUTPUTS.items(), strict=False):
        value.name, value.type, value.shape = name, ir.TensorType(kind), ir.Shape([count, *axes])
    graph.outputs.extend(said)


def _choice(model: ir.Model, logits: ir.Value, best: ir.Value, ranker: Ranker, everything: Everything) -> ir.Node:
    """The node, put into the graph, whose outputs are all logits and nothing ranked, or the other way round."""
    outer, some, every = Nodes(model), Nodes(model), Nodes(model)
    start = outer.integers(0)
    ranked = [value for value in ranker(some, logits, best) if value is not None]
    assert logits.shape is not None
    size = logits.shape[1]
    then = [_nothing(some, np.float32, size if isinstance(size, int) else 0), *ranked]
    made = every("Identity", everything(every))
    made.shape, made.type = logits.shape, logits.type
    total = every("Squeeze", log_total(every, made), every.integers(-1))
    # what rules allow is not known where all logits are asked for
    totals = [total, *(every("Identity", total) for _ in ranked[3:])]
    branches = [
        ir.AttrGraph("then_branch", some.body("rank.some", [], then)),
        ir.AttrGraph("else_branch", every.body("rank.all", [], [made, *_none(every), *totals])),
    ]
    choice = ir.Node("", "If", [outer("Greater", best, start)], branches, num_outputs=len(then))
    model.graph.extend([*outer.made, choice])
    return choice


def rank_made(nodes: Nodes, product: ir.Value, best: ir.Value, make: Make, *, row_by_row: bool) -> Ranked:
    """Rank the logits that `make` makes of all rows of `product`: with `row_by_row` many one by one, few at once."""
    if not row_by_row:
        return _together(nodes, best, make)
    branches = []
    for branch, ranker in (("then", _row_by_row), ("else", _together)):
        within = Nodes(nodes.model)
        found = ranker(within, best, make)
        branches.append(ir.AttrGraph(f"{branch}_branch", within.body(f"rank.{branch}", [], found[:3])))
    many = nodes("Greater", nodes("Shape", product, end=1), nodes.integers(_TOGETHER))
    nodes.made.append(ir.Node("", "If", [many], branches, num_outputs=3))
    return Ranked(*nodes.made[-1].outputs)


def _together(nodes: Nodes, best: ir.Value, make: Make) -> Ranked:
    return rank(nodes, make(nodes, whole), best)


def _row_by_row(nodes: Nodes, best: ir.Value, make: Make) -> Ranked:
    """Rank each row by itself: a Scan hands rows over where they lie, and what is made of one stays in the cache."""
    apart = nodes.integers(1)
    scanned: list[ir.Value] = []
    row: list[ir.Value] = []

    def one(value: ir.Value) -> ir.Value:
        scanned.append(nodes("Unsqueeze", value, apart))
        name, kind = f"rank.row.{len(row)}", ir.TensorType(ir.DataType.FLOAT)
        row.append(ir.Value(name=name, shape=ir.Shape([1, None]), type=kind))
        return row[-1]

    within = Nodes(nodes.model)
    found = rank(within, make(within, one), best)
    body = ir.AttrGraph("body", within.body("rank.row", row, found[:3]))
    count = ir.AttrInt64("num_scan_inputs", len(row))
    scan = ir.Node("", "Scan", scanned, [body, count], num_outputs=3)
    nodes.made.append(scan)
    return Ranked(*(nodes("Squeeze", value, apart) for value in scan.outputs))


def _none(nodes: Nodes) -> tuple[ir.Value, ir.Value]:
    """No logits and no tokens, (0, 0) each."""
    return _nothing(nodes, np.float32, 0), _nothing(nodes, np.int64, 0)


def _nothing(nodes: Nodes, kind: type[np.float32] | type[np.int64], width: int) -> ir.Value:
    """No rows, of so many columns."""
    one = constant(nodes.model, f"rank.one.{kind.__name__}", np.ones((1, 1), kind))
    return nodes("Expand", one, nodes.integers(0, width))


def rank(nodes: Nodes, logits: ir.Value, best: ir.Value) -> Ranked:
    """The `best` (1,) int64 largest of `logits` (m, vocabulary), and the sum of all, as nodes of a graph."""
    largest, tokens = top(nodes, logits, best)
    one, place = (nodes("Gather", value, nodes.integers(0), axis=1) for value in (largest, tokens))
    return Ranked(largest, tokens, nodes("Squeeze", total_of(nodes, logits, one, place), nodes.integers(-1)))


def total_of(nodes: Nodes, logits: ir.Value, one: ir.Value, place: ir.Value) -> ir.Value:
    """log(sum(exp(logits))) (m, 1), given one of each row's logits, a large one, and its place, (m, 1) each."""
    return nodes("Sub", one, nodes("GatherElements", nodes("LogSoftmax", logits, axis=-1), place, axis=1))


def top(nodes: Nodes, logits: ir.Value, best: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The `best` (1,) int64 largest of `logits` (m, vocabulary) in falling order, and their tokens: (m, best) each."""
    vocabulary = None if logits.shape is None else logits.shape[1]
    size = _block(vocabulary) if isinstance(vocabulary, int) else None
    return in_order(nodes, logits, best) if size is None else _in_blocks(nodes, logits, best, size)


def log_total(nodes: Nodes, logits: ir.Value, highest: ir.Value | None = None) -> ir.Value:
    """log(sum(exp(logits))) (m, 1), given the `highest` (m, 1) of each row if it is known."""
    last = nodes.integers(-1)
    if highest is None:
        highest = nodes("ReduceMax", logits, last, keepdims=1)
    normalised = nodes("LogSoftmax", logits, axis=-1)
    return nodes("Sub", highest, nodes("ReduceMax", normalised, last, keepdims=1))


def _block(vocabulary: int) -> int | None:
    """The divisor of the vocabulary that is nearest to the block wanted; None if all are far from it."""
    divisors = [size for size in _BLOCKS if vocabulary % size == 0 and vocabulary > size]
    return min(divisors, key=lambda size: abs(size - BLOCK), default=None)


def _in_blocks(nodes: Nodes, logits: ir.Value, best: ir.Value, size: int) -> tuple[ir.Value, ir.Value]:
    count = columns_of(logits) // size
    last = nodes.integers(-1)
    unit = constant(nodes.model, "block.size", np.asarray(size, np.int64))
    blocks = nodes("Reshape", logits, nodes.integers(0, count, size))
    enough = nodes("Min", best, nodes.integers(count))
    _, chosen = in_order(nodes, nodes("ReduceMax", blocks, last, keepdims=0), enough)
    # in the order of the vocabulary, so that of equal logits the first comes first, as among all
    order, _ = in_order(nodes, chosen, enough, largest=0)
    near = nodes("GatherND", blocks, nodes("Unsqueeze", order, last), batch_dims=1)
    largest, index = in_order(nodes, nodes("Reshape", near, nodes.integers(0, -1)), best)
    block = nodes("GatherElements", order, nodes("Div", index, unit), axis=1)
    return largest, nodes("Add", nodes("Mul", block, unit), nodes("Mod", index, unit))


def in_order(nodes: Nodes, values: ir.Value, count: ir.Value, largest: int = 1) -> tuple[ir.Value, ir.Value]:
    """The `count` largest, or smallest, of the last axis, in order, and where they are."""
    node = ir.node("TopK", [values, count], {"axis": -1, "largest": largest}, num_outputs=2)
    nodes.made.append(node)
    return node.outputs[0], node.outputs[1]
