"""Rewrites that leave results alone and save onnxruntime's CPU kernels work.

That of attention multiplies a single query's row with the keys as it reads them, if the scale is 1; for anything else
it first copies all keys and values into another layout, which for a decoding step costs more than the products.
"""

import math

import onnx_ir as ir
import torch
from torch import nn

from heedful.export.constants import integers
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


def fold_queries(model: ir.Model) -> None:
    """Make a few queries of one head single queries of as many heads, which share the head's keys, in `model`.

    Of every attention to `memory` in a decoder's graph, in place: (b, h, n, d) becomes (b, h * n, 1, d), grouped heads
    in the sense of Ainslie et al. 2023, where n is at most `FEW`; more queries are worth the copy.
    """
    nodes = attention_to_memory(model)
    if not nodes:
        return
    first = model.graph[0]
    there, back, rest, shapes = _shapes(model, nodes[0])
    masks: dict[ir.Value, ir.Node] = {}
    for node in nodes:
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        if mask is not None:
            # the operator does not repeat a mask for all queries
            masks.setdefault(mask, ir.node("Expand", [mask, rest]))
            node.replace_input_with(3, masks[mask].outputs[0])
        folded = ir.node("Reshape", [node.inputs[0], there])
        model.graph.insert_before(node, folded)
        node.replace_input_with(0, folded.outputs[0])
        output = node.outputs[0]
        output.shape = None
        unfolded = ir.node("Reshape", [output, back])
        for use in list(output.uses()):
            if use.node is not unfolded:
                use.node.replace_input_with(use.idx, unfolded.outputs[0])
        model.graph.insert_after(node, unfolded)
    model.graph.insert_before(first, shapes)
    for mask, expanded in masks.items():
        producer = mask.producer()
        assert producer is not None, "a mask is computed from how much of the memory is real"
        model.graph.insert_after(producer, expanded)


def _shapes(model: ir.Model, attention: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value, list[ir.Node]]:
    """The shapes (0, h * f, n / f, d) and (0, h, n, d), where f is n if that is at most `FEW`, else 1; (1, 1, n / f, 1)
    that a mask is repeated to; and the nodes that compute them. 0 stands for the size that is there. All layers of a
    decoder have the same heads.
    """
    tokens = next(value for value in model.graph.inputs if value.name == "tokens")
    key = attention.inputs[1]
    assert key is not None
    assert key.shape is not None
    heads, dim = (integers(model, [int(key.shape[axis])]) for axis in (1, 3))  # type: ignore[arg-type]
    same = integers(model, [0])
    new = ir.node("Shape", [tokens], {"start": 1, "end": 2})
    few = ir.node("LessOrEqual", [new.outputs[0], integers(model, [FEW])])
    fold = ir.node("Where", [few.outputs[0], new.outputs[0], integers(model, [1])])
    wide = ir.node("Mul", [fold.outputs[0], heads])
    rest = ir.node("Div", [new.outputs[0], fold.outputs[0]])
    there = ir.node("Concat", [same, wide.outputs[0], rest.outputs[0], dim], {"axis": 0})
    back = ir.node("Concat", [same, heads, new.outputs[0], dim], {"axis": 0})
    one = integers(model, [1])
    repeated = ir.node("Concat", [one, one, rest.outputs[0], one], {"axis": 0})
    nodes = [new, few, fold, wide, rest, there, back, repeated]
    return there.outputs[0], back.outputs[0], repeated.outputs[0], nodes


def attention_to_memory(model: ir.Model) -> list[ir.Node]:
    """The nodes of cross-attention in a decoder's graph."""

    def is_memory(value: ir.Value | None) -> bool:
        return value is not None and (value.name or "").startswith("memory.")

    return [node for node in model.graph if node.op_type == "Attention" and is_memory(node.inputs[1])]
