"""Attention of an encoder by onnxruntime's flash kernel, which never holds the scores of all pairs.

The standard operator's CPU kernel is as fast, but stores queries x keys x heads scores: 72 MB for Whisper base, where
the flash kernel needs little more than its output. Source of the algorithm: Dao et al. 2022, arXiv 2205.14135.
"""

import math
from typing import NamedTuple

import onnx_ir as ir

from heedful.export.constants import MICROSOFT, integers

_SWAP_HEADS = (0, 2, 1, 3)


class Place(NamedTuple):
    """Where a self-attention stands: its input (b, n, 3 * h * d), its output (b, n, h * d), the nodes between."""

    source: ir.Value
    output: ir.Value
    nodes: list[ir.Node]


def use_flash(model: ir.Model) -> None:
    """Put `MultiHeadAttention` in place of every self-attention without a mask in `model`, with its transposes."""
    for node in [node for node in model.graph if node.op_type == "Attention"]:
        place = find_place(node) if not any(node.inputs[3:]) else None
        if place is None:
            continue
        heads, width = heads_and_width(node)
        parts = ir.node("Split", [place.source, integers(model, [width] * 3)], {"axis": -1}, num_outputs=3)
        # without a scale both operators take 1 / sqrt(d)
        scale = node.attributes["scale"].as_float() if "scale" in node.attributes else math.sqrt(heads / width)
        attributes = {"num_heads": heads, "scale": scale}
        attention = ir.node("MultiHeadAttention", parts.outputs, attributes, domain=MICROSOFT)
        last = place.nodes[-1]
        ir.convenience.replace_nodes_and_values(
            model.graph, last, place.nodes, [parts, attention], [place.output], [attention.outputs[0]]
        )
        model.opset_imports.setdefault(MICROSOFT, 1)


def find_place(attention: ir.Node) -> Place | None:
    """The surroundings of `attention` if they are those that `SelfAttention` becomes, without a cache."""
    split = attention.inputs[0].producer() if attention.inputs[0] is not None else None
    if split is None or split.op_type != "Split" or list(split.outputs) != list(attention.inputs[:3]):
        return None
    # keys and values that are wanted elsewhere too, as those of a prefix are
    if any(value.is_graph_output() or len(value.uses()) != 1 for value in split.outputs):
        return None
    before = _chain_back(split, ["Transpose", "Reshape"])
    after = _chain_forward(attention, ["Transpose", "Reshape"])
    if before is None or after is None or before[-1].inputs[0] is None:
        return None
    if any(tuple(node.attributes["perm"].as_ints()) != _SWAP_HEADS for node in (before[0], after[0])):
        return None
    return Place(before[-1].inputs[0], after[-1].outputs[0], [*reversed(before), split, attention, *after])


def _chain_back(node: ir.Node, types: list[str]) -> list[ir.Node] | None:
    """The producers of the first inputs, one behind the other, if they are of `types` and used for nothing else."""
    found: list[ir.Node] = []
    for op_type in types:
        value = node.inputs[0]
        producer = None if value is None else value.producer()
        if producer is None or value is None or producer.op_type != op_type or len(value.uses()) != 1:
            return None
        found.append(node := producer)
    return found


def _chain_forward(node: ir.Node, types: list[str]) -> list[ir.Node] | None:
    """The only users of the first outputs, one after the other, if they are of `types`."""
    found: list[ir.Node] = []
    for op_type in types:
        uses = list(node.outputs[0].uses())
        if len(uses) != 1 or uses[0].node.op_type != op_type:
            return None
        found.append(node := uses[0].node)
    return found


def heads_and_width(attention: ir.Node) -> tuple[int, int]:
    """h and h * d, from the shape (b, h, n, d) of the queries."""
    queries = attention.inputs[0]
    assert queries is not None
    assert queries.shape is not None
    heads, dim = (int(queries.shape[axis]) for axis in (1, 3))  # type: ignore[arg-type]
    return heads, heads * dim
