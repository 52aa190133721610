"""Weights in 8 bits: graphs of a few nodes, quantized and run, beside the same arithmetic written out in numpy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from heedful.export.quantize import PLAN, quantize, quantize_blockwise, quantize_dynamic

Floats = NDArray[np.float32]
Quantizer = Callable[[ir.Model], None]


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def graph(nodes: list[onnx.NodeProto], constants: dict[str, NDArray[Any]]) -> ir.Model:
    """A model of `nodes`; a name that nothing makes is an input, one that no node reads an output."""
    made = [name for each in nodes for name in each.output]
    read = [name for each in nodes for name in each.input]
    inputs = dict.fromkeys(name for name in read if name not in made and name not in constants)
    proto = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind(name), None) for name in inputs],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in made if name not in read],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return ir.serde.deserialize_model(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 24)], ir_version=10))


def kind(name: str) -> int:
    return int(onnx.TensorProto.INT64 if name == "tokens" else onnx.TensorProto.FLOAT)


def session(model: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString(), options, ["CPUExecutionProvider"])


def run(model: ir.Model, **inputs: NDArray[Any]) -> Floats:
    (output, *_) = session(model).run(None, inputs)
    found: Floats = output
    return found


def operators(model: ir.Model) -> list[str]:
    return [each.op_type for each in model.graph]


def constants(model: ir.Model) -> dict[str, NDArray[Any]]:
    return {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def product(weight: Floats) -> ir.Model:
    return graph([node("MatMul", "x w", "y")], {"w": weight})


def relative(found: Floats, expected: Floats) -> float:
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


def dynamic_by_hand(x: Floats, weight: Floats) -> Floats:
    """One scale and zero point for all of x, in uint8, as ONNX defines DynamicQuantizeLinear; one scale a column of w."""
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    step = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / step), 0, 255)
    codes = np.clip(np.rint(x / step) + zero, 0, 255) - zero
    columns = np.abs(weight).max(axis=0)
    columns = np.where(columns == 0, 1, columns) / 127
    weights = np.rint(weight / columns)
    exact: Floats = ((codes @ weights) * (step * columns)).astype(np.float32)
    return exact


def blocks_by_hand(weight: Floats, size: int) -> tuple[NDArray[np.uint8], Floats]:
    """Codes (n, blocks, size) around 128 and scales (n, blocks) of a weight (k, n), one block at a time."""
    k, n = weight.shape
    codes, scales = np.empty((n, k // size, size), np.uint8), np.empty((n, k // size), np.float32)
    for column in range(n):
        for block in range(k // size):
            values = weight[block * size : (block + 1) * size, column]
            scales[column, block] = np.float32(max(np.abs(values).max(), np.float32(1e-12))) / np.float32(127)
            codes[column, block] = 128 + np.rint(values / scales[column, block])
    return codes, scales


def dequantized(codes: NDArray[np.uint8], scales: Floats) -> Floats:
    """Back to (n, k)."""
    values: Floats = (codes.astype(np.float32) - 128) * scales[:, :, None]
    return values.reshape(len(codes), -1)


@settings(max_examples=40)
@given(rows=st.integers(1, 9), k=st.integers(1, 130), n=st.integers(1, 67), seed=st.integers(0, 10**6), bias=st.booleans())
def test_dynamic_is_the_arithmetic_written_out(rows: int, k: int, n: int, seed: int, bias: bool) -> None:
    x, weight, vector = normal(seed, rows, k), 0.3 * normal(seed + 1, k, n), normal(seed + 2, n)
    nodes = [node("MatMul", "x w", "product")] + [node("Add", "product b", "y")] * bias
    model = graph(nodes, {"w": weight} | {"b": vector} * bias if False else ({"w": weight, "b": vector} if bias else {"w": weight}))
    quantize_dynamic(model)
    assert operators(model) == ["DynamicQuantizeMatMul"]
    expected = dynamic_by_hand(x, weight) + (vector if bias else 0)
    np.testing.assert_allclose(run(model, x=x), expected, rtol=1e-5, atol=1e-5)
