"""Convolutions as matrix products: what torch computes, and the same bits on any number of threads."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from heedful.export.constants import constant
from heedful.export.unfold import unfold_convolutions

Array = NDArray[Any]
KIND = ir.TensorType(ir.DataType.FLOAT)


def convolution(
    weight: Array, bias: Array | None, *, time: int | str = "t", gelu: bool = False, **attributes: Any
) -> ir.Model:
    """A graph that transposes x (b, time, c), convolves, and is activated if asked."""
    x = ir.Value(name="x", shape=ir.Shape(["b", time, weight.shape[1]]), type=KIND)
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 24})
    model = ir.Model(graph, ir_version=11)
    nodes = [ir.node("Transpose", [x], {"perm": [0, 2, 1]})]
    nodes[0].outputs[0].shape = ir.Shape(["b", weight.shape[1], time])
    constants = [constant(model, "weight", weight)] + ([] if bias is None else [constant(model, "bias", bias)])
    nodes.append(ir.node("Conv", [nodes[-1].outputs[0], *constants], attributes))
    if gelu:
        nodes.append(ir.node("Gelu", nodes[-1].outputs))
    graph.extend(nodes)
    output = nodes[-1].outputs[0]
    output.name, output.type, output.shape = "y", KIND, ir.Shape(["b", "out", "time"])
    graph.outputs.append(output)
    return model


def run(model: ir.Model, x: Array, threads: int = 1) -> Array:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    content = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    found: Array = session.run(None, {"x": x})[0]
    return found


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 3),
    time=st.integers(5, 40),
    channels=st.integers(1, 9),
    out=st.integers(1, 9),
    taps=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    bias=st.booleans(),
    gelu=st.booleans(),
)
def test_it_is_torchs_convolution(
    seed: int,
    batch: int,
    time: int,
    channels: int,
    out: int,
    taps: int,
    stride: int,
    padding: tuple[int, int],
    bias: bool,
    gelu: bool,
) -> None:
    x, weight = normal(seed, batch, time, channels), normal(seed + 1, out, channels, taps)
    offset = normal(seed + 2, out) if bias else None
    attributes = {"pads": list(padding), "strides": [stride], "kernel_shape": [taps]}
    model = convolution(weight, offset, time=time, gelu=gelu, **attributes)
    unfold_convolutions(model)
    assert "Conv" not in [node.op_type for node in model.graph]
    padded = torch.nn.functional.pad(torch.tensor(x).double().transpose(1, 2), padding)
    expected = torch.nn.functional.conv1d(
        padded, torch.tensor(weight).double(), None if offset is None else torch.tensor(offset).double(), stride
    )
    expected = torch.nn.functional.gelu(expected) if gelu else expected
    np.testing.assert_allclose(run(model, x), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    """They do with onnxruntime's convolution, which is why it is replaced."""
    x, weight = normal(0, 1, 100, 80), normal(1, 64, 80, 3)
    model = convolution(weight, None, time=100, pads=[1, 1], strides=[1], kernel_shape=[3])
    unfold_convolutions(model)
    one, *others = (run(model, x, threads) for threads in (1, 2, 3, 8))
    for other in others:
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ((4, 6, 3), {"dilations": [2], "strides": [1], "pads": [0, 0]}),
        ((6, 1, 3), {"group": 6, "strides": [1], "pads": [0, 0]}),
        ((4, 6, 3), {"auto_pad": "SAME_UPPER", "strides": [1]}),
        ((4, 6, 3), {"strides": [1], "pads": [0, 0], "time": "t"}),
    ],
    ids=["dilated", "grouped", "padded by onnxruntime", "of any length"],
)
def test_other_convolutions_are_left_alone(shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
    model = convolution(normal(1, *shape), None, kernel_shape=[shape[2]], **{"time": 9, **attributes})
    unfold_convolutions(model)
    assert [node.op_type for node in model.graph] == ["Transpose", "Conv"]
