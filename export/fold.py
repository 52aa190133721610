"""Rewrites that leave results alone and save onnxruntime's CPU kernels work.

That of attention multiplies a single query's row with the keys as it reads them, if the scale is 1; for anything else
it first copies all keys and values into another layout, which for a decoding step costs more than the products.
"""

import math
from typing import NamedTuple

import onnx_ir as ir
import torch
from torch import nn

from heedful.export.constants import Nodes
from heedful.models.attention import CrossAttention, DotProductScore, SelfAttention
from heedful.models.text import TokenDecoder
from heedful.runtime.engine.decoder import FEW


@torch.no_grad()
def fold_scales(model: nn.Module) -> None:
    """Take the scale of every dot product into the map that makes its queries, in place.

    The result is the same up to rounding, exactly the same where the scale is a power of two.
    """
    for module in model.modules():
        if isinstance(module, SelfAttention | CrossAttention) and isinstance(module.score, DotProductScore):
            scale = 1 / math.sqrt(module.head_dim) if module.score.scale is None else module.score.scale
            source = module.query_key_value if isinstance(module, SelfAttention) else module.query
            queries = module.heads * module.head_dim
            scales = (buffer for name, buffer in source.named_buffers() if name == "column_scale")
            for tensor in (*source.parameters(), *scales):
                tensor[:queries] *= scale
            module.score.scale = 1.0


def drop_zeros(model: nn.Module) -> None:
    """Leave out a bias of logits that is zero everywhere, in place: it costs an addition over the whole vocabulary."""
    for module in model.modules():
        if isinstance(module, TokenDecoder) and module.output_bias is not None and not module.output_bias.any():
            module.output_bias = None


def fold_queries(model: ir.Model, *, own: bool = True) -> None:
    """Make a few queries of one head single queries of as many heads, which share the head's keys, in `model`.

    Of every attention to `memory` in a decoder's graph, and with `own` to its own tokens, in place: (b, h, n, d)
    becomes (b, h * n, 1, d), grouped heads in the sense of Ainslie et al. 2023, where n is at most `FEW`; more queries
    are worth the copy.
    """
    memory = attention_to_memory(model)
    nodes = memory + (_attention_to_own(model) if own else [])
    if not nodes:
        return
    first = model.graph[0]
    shapes, made = _shapes(model, nodes[0])
    masks: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes:
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        if mask is not None:
            if mask not in masks:
                masks[mask] = _for_all(mask, shapes) if node in memory else _for_each(mask, shapes)
            node.replace_input_with(3, masks[mask][-1].outputs[0])
        folded = ir.node("Reshape", [node.inputs[0], shapes.there])
        model.graph.insert_before(node, folded)
        node.replace_input_with(0, folded.outputs[0])
        output = node.outputs[0]
        output.shape = None
        unfolded = ir.node("Reshape", [output, shapes.back])
        for use in list(output.uses()):
            if use.node is not unfolded:
                use.node.replace_input_with(use.idx, unfolded.outputs[0])
        model.graph.insert_after(node, unfolded)
    model.graph.insert_before(first, made)
    for mask, new in masks.items():
        producer = mask.producer()
        assert producer is not None, "a mask is computed from what is real, or from what each query sees"
        model.graph.insert_after(producer, new)


class _Shapes(NamedTuple):
    """Shapes for n queries, of which f become heads: n if that is at most `FEW`, else 1. 0 is the size that is there.

    Queries go `there` (0, h * f, n / f, d) and come `back` (0, h, n, d). The mask of a memory is repeated to `rest` (1,
    1, n / f, 1); a mask for each query to `heads` (1, h or 1, 1, 1), and becomes `each` (0, as many, n / f, 0).
    """

    there: ir.Value
    back: ir.Value
    rest: ir.Value
    heads: ir.Value
    each: ir.Value


def _for_all(mask: ir.Value, shapes: _Shapes) -> list[ir.Node]:
    """The `mask` (b, 1, 1, frames) that all queries share: the operator does not repeat it."""
    return [ir.node("Expand", [mask, shapes.rest])]


def _for_each(mask: ir.Value, shapes: _Shapes) -> list[ir.Node]:
    """The `mask` (b, 1 or h, n, slots) of queries that have become heads."""
    repeated = ir.node("Expand", [mask, shapes.heads])
    return [repeated, ir.node("Reshape", [repeated.outputs[0], shapes.each])]


def _shapes(model: ir.Model, attention: ir.Node) -> tuple[_Shapes, list[ir.Node]]:
    """The shapes for `attention`, and the nodes that compute them. All layers of a decoder have the same heads."""
    tokens = next(value for value in model.graph.inputs if value.name == "tokens")
    key = attention.inputs[1]
    assert key is not None
    assert key.shape is not None
    new = Nodes(model)
    heads, dim = (new.integers(int(key.shape[axis])) for axis in (1, 3))  # type: ignore[arg-type]
    same, one, any_ = (new.integers(number) for number in (0, 1, -1))
    count = new("Shape", tokens, start=1, end=2)
    few = new("LessOrEqual", count, new.integers(FEW))
    fold = new("Where", few, count, one)
    rest = new("Div", count, fold)
    shapes = _Shapes(
        there=new("Concat", same, new("Mul", fold, heads), rest, dim, axis=0),
        back=new("Concat", same, heads, count, dim, axis=0),
        rest=new("Concat", one, one, rest, one, axis=0),
        heads=new("Concat", one, new("Where", few, heads, one), one, one, axis=0),
        each=new("Concat", same, any_, rest, same, axis=0),
    )
    return shapes, new.made


def _attention_to_own(model: ir.Model) -> list[ir.Node]:
    """The nodes of attention to what a decoder keeps of its own tokens."""

    def is_kept(value: ir.Value | None) -> bool:
        producer = None if value is None else value.producer()
        return producer is not None and producer.op_type == "TensorScatter"

    return [node for node in model.graph if node.op_type == "Attention" and is_kept(node.inputs[1])]


def attention_to_memory(model: ir.Model) -> list[ir.Node]:
    """The nodes of cross-attention in a decoder's graph."""

    def is_memory(value: ir.Value | None) -> bool:
        return value is not None and (value.name or "").startswith("memory.")

    return [node for node in model.graph if node.op_type == "Attention" and is_memory(node.inputs[1])]
