"""Rewrites that leave results alone and make onnxruntime's CPU kernel for attention multiply keys where they lie.

The kernel multiplies a single query's row with the keys as it reads them, if the scale is 1; for anything else it first
copies all keys and values into another layout, which for a decoding step costs more than the products.
"""

import math

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from heedful.models.attention import CrossAttention, DotProductScore, SelfAttention
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
            for parameter in source.parameters():
                parameter[:queries] *= scale
            module.score.scale = 1.0


def fold_queries(model: ir.Model) -> None:
    """Make a few queries of one head single queries of as many heads, which share the head's keys, in `model`.

    Of every attention to `memory` in a decoder's graph, in place: (b, h, n, d) becomes (b, h * n, 1, d), grouped heads
    in the sense of Ainslie et al. 2023, where n is at most `FEW`; more queries are worth the copy.
    """
    nodes = [node for node in model.graph if node.op_type == "Attention" and _is_memory(node.inputs[1])]
    if not nodes:
        return
    tokens = next(value for value in model.graph.inputs if value.name == "tokens")
    new = ir.node("Shape", [tokens], {"start": 1, "end": 2})
    few = ir.node("LessOrEqual", [new.outputs[0], integers(model, [FEW])])
    one = integers(model, [1])
    fold = ir.node("Where", [few.outputs[0], new.outputs[0], one])
    rest = ir.node("Div", [new.outputs[0], fold.outputs[0]])
    shared = [new, few, fold, rest]
    shapes: dict[tuple[int, int], tuple[ir.Value, ir.Value]] = {}
    for node in nodes:
        query, key = node.inputs[0], node.inputs[1]
        assert query is not None
        assert key is not None
        assert key.shape is not None
        heads, dim = int(key.shape[1]), int(key.shape[3])  # type: ignore[arg-type]
        if (heads, dim) not in shapes:
            copied, width = integers(model, [0]), integers(model, [dim])
            wide = ir.node("Mul", [fold.outputs[0], integers(model, [heads])])
            there = ir.node("Concat", [copied, wide.outputs[0], rest.outputs[0], width], {"axis": 0})
            back = ir.node("Concat", [copied, integers(model, [heads]), new.outputs[0], width], {"axis": 0})
            shared += [wide, there, back]
            shapes[heads, dim] = there.outputs[0], back.outputs[0]
        there_shape, back_shape = shapes[heads, dim]
        folded = ir.node("Reshape", [query, there_shape])
        model.graph.insert_before(node, folded)
        node.replace_input_with(0, folded.outputs[0])
        output = node.outputs[0]
        unfolded = ir.node("Reshape", [output, back_shape])
        for use in list(output.uses()):
            if use.node is not unfolded:
                use.node.replace_input_with(use.idx, unfolded.outputs[0])
        model.graph.insert_after(node, unfolded)
        output.shape = None
    model.graph.insert_before(model.graph[0], shared)


def _is_memory(value: ir.Value | None) -> bool:
    return value is not None and (value.name or "").startswith("memory.")


def integers(model: ir.Model, numbers: list[int]) -> ir.Value:
    """The constant of `numbers`, int64, made on first use."""
    name = f"integers.{'.'.join(map(str, numbers))}"
    if name not in model.graph.initializers:
        value = ir.Value(name=name, shape=ir.Shape([len(numbers)]), type=ir.TensorType(ir.DataType.INT64))
        value.const_value = ir.tensor(np.asarray(numbers, np.int64), name=name)
        model.graph.register_initializer(value)
    return model.graph.initializers[name]
