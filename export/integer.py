"""Products of 8-bit integers whose rows do not depend on one another, so that inputs can share a batch.

Scales are known beforehand, as models that were trained for integers state them, or each row of an input has its own,
found at run time. Sums are exact. From four rows on this is twice as fast as `quantize_blockwise`. The embedding is
stored once, row by row, for lookups and for logits.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from heedful.export.constants import MICROSOFT, constant, integers
from heedful.export.integer_nodes import IntegerNodes
from heedful.export.quantize import bias_of, products, replace, weight_name
from heedful.export.scales import column_scales, fitted, in_units

# the integer for zero, where numbers reach as far below it as above, and where they hardly do
_ZERO, _LOW = 128, 32
# how far below zero activations reach: operators, and x * sigmoid(x), which is a product
_DEPTHS, _SILU = {"Relu": 0.0, "Gelu": 0.171}, 0.279


@dataclass(frozen=True)
class Scales:
    """What one unit of an integer stands for: in a matrix's input, and in each of its columns (n,)."""

    activation: float
    columns: NDArray[np.float32]


def set_scales(module: nn.Module, activation: float, columns: torch.Tensor) -> None:
    """Note the scales of the matrix in `module` with it, so that they go through what is done to it."""
    module.register_buffer("activation_scale", torch.tensor(activation), persistent=False)
    module.register_buffer("column_scale", columns.clone(), persistent=False)


def find_scales(model: nn.Module) -> dict[str, Scales]:
    """The scales noted in `model`, by the names of the weights, larger where that loses less (export/scales.py)."""
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        buffers = dict(module.named_buffers(recurse=False))
        if "column_scale" in buffers:
            weight = module.get_parameter("weight").detach().float().numpy()
            columns = fitted(weight.T, buffers["column_scale"].float().numpy())
            found[f"{path}.weight"] = Scales(float(buffers["activation_scale"]), columns)
    return found


def quantize_known(model: ir.Model, scales: Mapping[str, Scales]) -> None:
    """Put integer products in place of those whose matrix is in `scales`, and of lookups in the same matrices.

    What leaves a ReLU is rounded to 0 ... 255 units, what else is read to -128 ... 127.
    """
    for node, weight in products(model, ""):
        name = weight_name(node)
        known = scales.get(name.removeprefix("model."))
        if known is None:
            continue
        scale = constant(model, f"{name}.activation", np.asarray(known.activation, np.float32))
        zero = _take_in_relu(model, node)
        quantized = ir.node("QuantizeLinear", [node.inputs[0], scale, zero])
        add, bias = bias_of(node)
        product = _product(model, node, weight, quantized.outputs[0], (scale, zero), known.columns, bias)
        replace(model, node, add, quantized, product)
    _look_up_all(model, scales)


def quantize_rows(model: ir.Model, pattern: str = "") -> None:
    """Put integer products in place of every product with a constant matrix, and of lookups in the same matrix.

    Only of matrices whose name has `pattern`, a regular expression, in it. Each column of the matrix has a scale, and
    each row of its input one that is found at run time.
    """
    scales = {}
    zeros: dict[tuple[str, int], ir.Value] = {}
    for node, weight in products(model, pattern):
        columns = column_scales(weight)
        name = weight_name(node)
        scales[name.removeprefix("model.")] = Scales(1.0, columns)
        rows, made = node.inputs[0], IntegerNodes(model)
        assert rows is not None
        scale, zero = _units(made, rows)
        like = (_leading(rows) or name, zero)
        if like not in zeros:
            zeros[like] = made("Expand", made.unsigned(zero), made("Shape", scale))
        # a row of zeros is divided by zero: whatever integers that makes, times its scale they are zeros again
        quantized = made.of_rows(rows, len(weight), scale, zeros[like], ir.DataType.UINT8)
        product = _product(model, node, weight, quantized, (made.number(1.0), made.unsigned(zero)), columns, None)
        scaled = ir.node("Mul", [product.outputs[0], scale])
        replace(model, node, None, *made.made, product, scaled)
    _look_up_all(model, scales)


def _units(made: IntegerNodes, rows: ir.Value) -> tuple[ir.Value, int]:
    """What one of the integers 0 ... 255 stands for in each row (..., 1), and which of them stands for zero."""
    axes = 0 if rows.shape is None else len(rows.shape)
    depth = _depth(rows)
    if depth is None:
        return made.unit(made.largest(rows, -1), 127, least=0, axes=axes), _ZERO
    zero, least = (_LOW, depth / _LOW) if depth else (0, 0.0)
    largest = made("ReduceMax", rows, made.integers(-1), keepdims=1)
    return made.unit(largest, 255 - zero, least=least, axes=axes), zero


def _depth(rows: ir.Value) -> float | None:
    """How far below zero an activation that `rows` come from can reach; None if they come from elsewhere."""
    before = rows.producer()
    if before is None or before.op_type != "Mul":
        return None if before is None else _DEPTHS.get(before.op_type)
    gates = (factor.producer() for factor in before.inputs if factor is not None)
    silu = any(gate is not None and gate.op_type == "Sigmoid" and gate.inputs[0] in before.inputs for gate in gates)
    return _SILU if silu else None


def quantize_tables(model: ir.Model, pattern: str) -> None:
    """Look rows up in 8 bits in the tables whose name has `pattern`, a regular expression, in it.

    They are stored as `quantize_rows` stores a table that is also a matrix, so that all graphs of a bundle share it.
    """
    scales = {}
    for name, value in model.graph.initializers.items():
        if re.search(pattern, name) and value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
            table = value.const_value.numpy()
            scales[name.removeprefix("model.")] = Scales(1.0, column_scales(table.T))
    _look_up_all(model, scales)


def _leading(rows: ir.Value) -> str:
    """The sizes of all axes of `rows` but the last, nothing if one of them has neither a number nor a name."""
    if rows.shape is None:
        return ""
    sizes = [size if isinstance(size, int) else size.value for size in rows.shape[:-1]]
    return "" if None in sizes else str(sizes)


def _take_in_relu(model: ir.Model, node: ir.Node) -> ir.Value:
    """The integer for zero in what `node` reads. If 0, all below it is cut off, so that a ReLU before goes out."""
    rows, made = node.inputs[0], IntegerNodes(model)
    relu = None if rows is None else rows.producer()
    if rows is None or relu is None or relu.op_type != "Relu" or len(rows.uses()) > 1:
        return made.unsigned(_ZERO)
    node.replace_input_with(0, relu.inputs[0])
    model.graph.remove(relu, safe=True)
    return made.unsigned(0)


def _product(
    model: ir.Model,
    node: ir.Node,
    weight: NDArray[np.float32],
    quantized: ir.Value,
    unit: tuple[ir.Value, ir.Value],
    columns: NDArray[np.float32],
    bias: ir.Value | None,
) -> ir.Node:
    """The product of `quantized`, given its scale and its zero, with `weight` (k, n) in place of `node`'s."""
    name, (scale, zero) = weight_name(node), unit
    matrix = in_units(weight, columns)
    factors = constant(model, f"{name}.columns", columns)
    if node.op_type != "Gemm":
        inputs = [quantized, constant(model, f"{name}.int8", matrix), scale, factors, zero, None, bias]
        return ir.node("MatMulIntegerToFloat", inputs, domain=MICROSOFT)
    # a table of embeddings, stored row by row for lookups too
    table = constant(model, f"{name}.int8", np.ascontiguousarray(matrix.T))
    zeros = constant(model, f"{name}.zero", np.zeros(len(columns), np.int8))
    whole = None
    if bias is not None and bias.const_value is not None and scale.const_value is not None:
        units = bias.const_value.numpy() / (scale.const_value.numpy() * columns.astype(np.float64))
        whole = constant(model, f"{name}.bias", np.rint(units).astype(np.int32))
    inputs = [quantized, scale, zero, table, factors, zeros, whole]
    return ir.node("QGemm", inputs, {"transB": 1}, domain=MICROSOFT)


def _look_up_all(model: ir.Model, scales: Mapping[str, Scales]) -> None:
    """Make every lookup in a table of `scales` that is a constant a lookup of integers."""
    for node in [node for node in model.graph if node.op_type == "Gather"]:
        table = node.inputs[0]
        known = None if table is None else scales.get(str(table.name).removeprefix("model."))
        if known is not None and table is not None and table.const_value is not None:
            _look_up(model, node, known.columns)


def _look_up(model: ir.Model, node: ir.Node, columns: NDArray[np.float32]) -> None:
    """Make `node` a lookup of integers, each row of which has its scale."""
    table, index = node.inputs[0], node.inputs[1]
    assert table is not None
    assert table.const_value is not None
    integers_ = np.ascontiguousarray(in_units(table.const_value.numpy().T, columns).T)
    rows = ir.node("Gather", [constant(model, f"{table.name}.int8", integers_), index], {"axis": 0})
    factors = ir.node("Gather", [constant(model, f"{table.name}.columns", columns), index], {"axis": 0})
    real = ir.node("Cast", rows.outputs, {"to": ir.DataType.FLOAT})
    column = ir.node("Unsqueeze", [factors.outputs[0], integers(model, [-1])])
    scaled = ir.node("Mul", [real.outputs[0], column.outputs[0]])
    replace(model, node, None, rows, factors, real, column, scaled)
