"""Products of 8-bit integers with scales that are known beforehand, as models trained for them state.

A row's result is exact in integers, so it does not depend on the other rows; nothing is measured at run time. The
embedding is stored once, row by row, for lookups and for logits.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from heedful.export.constants import MICROSOFT, constant
from heedful.export.quantize import bias_of, products, replace

_ZERO = np.asarray(128, np.uint8)


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
    """The scales noted in `model`, by the names of the weights."""
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        buffers = dict(module.named_buffers(recurse=False))
        if "column_scale" in buffers:
            columns = buffers["column_scale"].float().numpy()
            found[f"{path}.weight"] = Scales(float(buffers["activation_scale"]), columns)
    return found


def quantize_known(model: ir.Model, scales: dict[str, Scales]) -> None:
    """Put integer products in place of those whose matrix is in `scales`, and of lookups in the same matrices."""
    for node, weight in products(model, ""):
        name = str(node.inputs[1].name)  # type: ignore[union-attr]
        known = scales.get(name.removeprefix("model."))
        if known is None:
            continue
        tied = node.op_type == "Gemm"
        integers = np.rint(weight / known.columns).clip(-127, 127).astype(np.int8)
        scale = constant(model, f"{name}.activation", np.asarray(known.activation, np.float32))
        zero = constant(model, "activation.zero", _ZERO)
        columns = constant(model, f"{name}.columns", known.columns)
        quantized = ir.node("QuantizeLinear", [node.inputs[0], scale, zero])
        add, bias = bias_of(node)
        if tied:
            matrix = constant(model, f"{name}.int8", np.ascontiguousarray(integers.T))
            none = constant(model, f"{name}.zero", np.zeros(len(known.columns), np.int8))
            whole = None
            if bias is not None and bias.const_value is not None:
                units = bias.const_value.numpy() / (known.activation * known.columns.astype(np.float64))
                whole = constant(model, f"{name}.bias", np.rint(units).astype(np.int32))
            inputs = [quantized.outputs[0], scale, zero, matrix, columns, none, whole]
            product = ir.node("QGemm", inputs, {"transB": 1}, domain=MICROSOFT)
        else:
            matrix = constant(model, f"{name}.int8", integers)
            inputs = [quantized.outputs[0], matrix, scale, columns, zero, None, bias]
            product = ir.node("MatMulIntegerToFloat", inputs, domain=MICROSOFT)
        replace(model, node, add, quantized, product)
    _look_up(model, scales)


def _look_up(model: ir.Model, scales: dict[str, Scales]) -> None:
    """Lookups in a matrix of `scales` become lookups of integers."""
    for node in [node for node in model.graph if node.op_type == "Gather"]:
        table = node.inputs[0]
        known = None if table is None else scales.get(str(table.name).removeprefix("model."))
        if known is None or table is None or table.const_value is None:
            continue
        integers = np.rint(table.const_value.numpy() / known.columns[:, None]).clip(-127, 127).astype(np.int8)
        rows = ir.node("Gather", [constant(model, f"{table.name}.int8", integers), node.inputs[1]], {"axis": 0})
        real = ir.node("Cast", rows.outputs, {"to": ir.DataType.FLOAT})
        # embeddings have one scale for all their rows
        unit = constant(model, f"{table.name}.unit", known.columns[:1])
        replace(model, node, None, rows, real, ir.node("Mul", [real.outputs[0], unit]))
