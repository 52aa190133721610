"""Products of integers of what leaves an activation, which hardly reaches below zero, beside integers written out."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper
from torch.nn import functional as F

from heedful.export.integer import quantize_rows
from heedful.runtime.engine.device import session_options

Floats = NDArray[np.float32]
Function = Callable[[torch.Tensor], torch.Tensor]
COLUMNS = 9

# nodes from x to a, the same in PyTorch, the integer for zero, and how far below zero is allowed for
NEAR_ZERO: list[tuple[str, Function, int, float]] = [
    ("a = Relu(x)", torch.relu, 0, 0.0),
    ("a = Gelu(x)", F.gelu, 32, 0.171),
    ('a = Gelu<approximate = "tanh">(x)', lambda x: F.gelu(x, approximate="tanh"), 32, 0.171),
    ("s = Sigmoid(x) a = Mul(x, s)", F.silu, 32, 0.279),
]
BOTH_WAYS: list[tuple[str, Function]] = [
    ("a = Tanh(x)", torch.tanh),
    ("s = Sigmoid(x) g = Gelu(x) a = Mul(g, x)", lambda x: F.gelu(x) * x),
    ("s = Sigmoid(x) n = Neg(x) a = Mul(n, s)", lambda x: -x * torch.sigmoid(x)),
]


def quantized(nodes: str, weight: Floats) -> Callable[[Floats], Floats]:
    """The product of what `nodes` make of x with `weight`, in integers."""
    k, n = weight.shape
    text = f'<ir_version: 10, opset_import: ["": 24]> g (float[m,{k}] x) => (float[m,{n}] y)'
    proto = onnx.parser.parse_model(f"{text} {{ {nodes} y = MatMul(a, w) }}")
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    graph = ir.serde.deserialize_model(proto)
    quantize_rows(graph)
    assert "MatMulIntegerToFloat" in {node.op_type for node in graph.graph}
    data = ir.serde.serialize_model(graph).SerializeToString()
    session = ort.InferenceSession(data, session_options(), providers=["CPUExecutionProvider"])
    return lambda x: np.asarray(session.run(None, {"x": x})[0])


def drawn(seed: int, rows: int, k: int, size: float) -> tuple[Floats, Floats]:
    """Inputs (rows, k), and weights (k, COLUMNS) whose neighbours have different signs, so that each has all units."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, k), np.float32) * np.float32(size)
    weight = rng.random((k, COLUMNS), np.float32) + np.float32(0.1)
    weight[1::2] *= -1
    return x, weight


cases = {"seed": st.integers(0, 10**6), "rows": st.integers(1, 5), "k": st.integers(2, 60)}


@settings(max_examples=60)
@given(case=st.sampled_from(NEAR_ZERO), size=st.sampled_from([0.01, 1.0, 30.0]), **cases)
def test_integers_begin_where_the_activation_does(
    case: tuple[str, Function, int, float], seed: int, rows: int, k: int, size: float
) -> None:
    nodes, function, zero, depth = case
    x, weight = drawn(seed, rows, k, size)
    values = function(torch.from_numpy(x)).numpy().astype(np.float64)
    units = np.maximum(values.max(1, keepdims=True) / (255 - zero), depth / zero if zero else 1e-30)
    columns = np.abs(weight).max(0) / 127
    codes, whole = np.rint(weight / columns), np.rint(values / units)
    assert whole.min() >= -zero
    assert whole.max() <= 255 - zero
    # a quotient within rounding of a half may go either way
    near = np.abs(np.abs(values / units) % 1 - 0.5) < 1e-3
    slack = (near @ np.abs(codes)) * (units * columns) + 1e-5 * np.abs(values).max() * k
    found = quantized(nodes, weight)(x)
    assert (np.abs(found - (whole @ codes) * units * columns) <= slack).all()


@pytest.mark.parametrize("case", BOTH_WAYS, ids=["tanh", "gelu x", "minus silu"])
@settings(max_examples=20)
@given(**cases)
def test_nothing_is_cut_off(case: tuple[str, Function], seed: int, rows: int, k: int) -> None:
    """Of what reaches below zero, though an activation has a part in it."""
    nodes, function = case
    x, weight = drawn(seed, rows, k, 3.0)
    values = function(torch.from_numpy(x)).numpy()
    found = quantized(nodes, weight)(x)
    # half a unit each of input and weight, if units are a 127th of the largest
    most = (np.abs(values).max(1, keepdims=True) * k) * (np.abs(weight).max(0) / 127) + 1e-6
    assert (np.abs(found - values @ weight) <= most).all()
