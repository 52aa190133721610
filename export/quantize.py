"""Weights in 8 bits for the CPU: what plans (export/plan.py) are made of, and export/integer.py.

- dynamic: one scale a column of the weight and one for the whole activation, found at run time. For encoders, whose
  products have a thousand rows and more. What is split behind one is computed part by part (export/separate.py).
- blockwise: one scale for each block of 64 inputs of a column, and activations scaled block by block too, so that a
  row's result does not depend on the other rows of its batch, as decoding needs. Up to 64 onnxruntime's kernel gives a
  row the same bits in a batch of any size; from 128 on it does not, and one bit is enough to round an activation of
  the next layer the other way.

Embeddings tied to a blockwise weight are looked up in that same weight, so it is stored once.
"""

import re
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from heedful.export.constants import MICROSOFT, Nodes, constant
from heedful.export.scales import column_scales, in_units

_BLOCKS = (64, 32, 16)
# the front end computes a spectrum of large range: it is small and stays in float32
_KEPT = "log_mel"


def quantize_dynamic(model: ir.Model, pattern: str = "") -> None:
    """Put products of integers in place of every product with a constant matrix, its bias taken in.

    Only of matrices whose name has `pattern`, a regular expression, in it. What several of them read is rounded once.
    """
    rounded: dict[ir.Value | None, Sequence[ir.Value]] = {}
    for node, weight in products(model, pattern):
        rows = node.inputs[0]
        if rows not in rounded:
            rounding = ir.node("DynamicQuantizeLinear", [rows], num_outputs=3)
            model.graph.insert_before(node, rounding)
            rounded[rows] = rounding.outputs
        integers, unit, zero = rounded[rows]
        scale = column_scales(weight)
        quantized = constant(model, f"{weight_name(node)}.int8", in_units(weight, scale))
        add, bias = bias_of(node)
        inputs = [integers, quantized, unit, constant(model, f"{weight_name(node)}.scale", scale), zero, None, bias]
        replace(model, node, add, ir.node("MatMulIntegerToFloat", inputs, domain=MICROSOFT))


def quantize_blockwise(model: ir.Model, pattern: str = "") -> None:
    """Put `MatMulNBits` in place of every product with a constant matrix, and of lookups in the same matrix.

    Only of matrices whose name has `pattern`, a regular expression, in it; in the largest blocks that divide the
    matrix.
    """
    for node, weight in products(model, pattern):
        columns = weight.T  # (n, k): one row for each output
        n, k = columns.shape
        size = next((size for size in _BLOCKS if k % size == 0), None)
        if size is None:
            continue
        blocks = columns.reshape(n, k // size, size)
        scale = np.maximum(np.abs(blocks).max(axis=2), 1e-12).astype(np.float32) / 127
        quantized = (np.rint(blocks / scale[:, :, None]) + 128).astype(np.uint8)
        name, source = weight_name(node), node.inputs[1]
        packed = constant(model, f"{name}.uint8", quantized)
        scales = constant(model, f"{name}.scale", scale)
        add, bias = bias_of(node)
        inputs = [node.inputs[0], packed, scales, None, None, bias]
        attributes = {"K": k, "N": n, "bits": 8, "block_size": size, "accuracy_level": 4}
        product = ir.node("MatMulNBits", inputs, attributes, domain=MICROSOFT)
        replace(model, node, add, product)
        assert source is not None
        for lookup in [use.node for use in source.uses() if use.node.op_type == "Gather"]:
            nodes, index = Nodes(model), lookup.inputs[1]
            assert index is not None
            look_up(nodes, packed, scales, index)
            replace(model, lookup, None, *nodes.made)


def look_up(nodes: Nodes, packed: ir.Value, scales: ir.Value, index: ir.Value) -> ir.Value:
    """Rows (..., k) float32 of a quantized matrix (n, k): (code - 128) * scale, block by block, at index (b, n)."""
    assert packed.shape is not None
    assert packed.const_value is not None
    rows, blocks, size = (int(each) for each in packed.shape)  # type: ignore[arg-type]
    # the same bytes in the shape that this operator wants: a bundle stores them once
    table = constant(nodes.model, f"{packed.name}.rows", packed.const_value.numpy().reshape(rows, blocks * size))
    axes = {"gather_axis": 0, "quantize_axis": 1}
    return nodes("GatherBlockQuantized", table, index, scales, domain=MICROSOFT, bits=8, block_size=size, **axes)


def products(model: ir.Model, pattern: str) -> list[tuple[ir.Node, NDArray[np.float32]]]:
    """Products with a constant matrix, and the matrix (k, n)."""
    found = []
    for node in model.graph:
        weight = node.inputs[1] if node.op_type in {"MatMul", "Gemm"} else None
        if weight is None or weight.const_value is None:
            continue
        if _KEPT in (weight.name or "") or not re.search(pattern, weight.name or ""):
            continue
        if len(weight.const_value.shape) != 2 or (node.op_type == "Gemm" and not _is_plain(node)):
            continue
        matrix = weight.const_value.numpy().astype(np.float32)
        found.append((node, matrix.T if node.op_type == "Gemm" else matrix))
    return found


def _is_plain(gemm: ir.Node) -> bool:
    """Whether `gemm` is x W^T and nothing more: what PyTorch's linear map without a bias becomes."""
    stated = {name: attribute.value for name, attribute in gemm.attributes.items()}
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0} | stated
    return plain == {"alpha": 1.0, "beta": plain["beta"], "transA": 0, "transB": 1} and len(gemm.inputs) == 2


def weight_name(node: ir.Node) -> str:
    """The name of the matrix that `node` multiplies with."""
    weight = node.inputs[1]
    assert weight is not None
    return str(weight.name)


def bias_of(node: ir.Node) -> tuple[ir.Node | None, ir.Value | None]:
    """The addition of a constant vector that alone follows `node`, and the vector."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add":
        return None, None
    add = uses[0].node
    other = add.inputs[1 - uses[0].idx]
    if other is None or other.const_value is None or _columns(node) != tuple(other.const_value.shape):
        return None, None
    return add, other


def _columns(node: ir.Node) -> tuple[int, ...]:
    """The shape of a bias for `node`: one number for each column of its weight."""
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    return (int(weight.const_value.numpy().shape[0 if node.op_type == "Gemm" else 1]),)


def replace(model: ir.Model, node: ir.Node, last: ir.Node | None, *new: ir.Node) -> None:
    """Put `new`, in order, in place of `node` up to and with `last`, and drop a weight that no node uses any more."""
    replace_all(model, [node] if last is None else [node, last], new, new[-1].outputs)


def replace_all(model: ir.Model, old: Sequence[ir.Node], new: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> None:
    """Put `new` in place of `old`, `outputs` for those of the last of them, and drop weights that no node uses now."""
    constants = [value for node in old for value in node.inputs if value is not None and value.const_value is not None]
    ir.convenience.replace_nodes_and_values(model.graph, old[-1], old, new, old[-1].outputs, outputs)
    for value in constants:
        if not value.uses() and value.name is not None and value.name in model.graph.initializers:
            del model.graph.initializers[value.name]
    model.opset_imports.setdefault(MICROSOFT, 1)
