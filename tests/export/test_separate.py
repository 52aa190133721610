"""Products taken apart: the same results, and the rows they share rounded once."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from heedful.export.constants import constant
from heedful.export.quantize import quantize_dynamic
from heedful.export.separate import separate

Floats = NDArray[np.float32]
FLOAT = ir.TensorType(ir.DataType.FLOAT)


def split_product(weight: Floats, bias: Floats | None, widths: list[int], *, axis: int = -1) -> ir.Model:
    """A graph that multiplies x (b, n, k), adds a bias, if there is one, and splits."""
    x = ir.Value(name="x", shape=ir.Shape([None, None, len(weight)]), type=FLOAT)
    model = ir.Model(ir.Graph([x], [], nodes=[], opset_imports={"": 24}), ir_version=11)
    nodes = [ir.node("MatMul", [x, constant(model, "weight", weight)])]
    if bias is not None:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], constant(model, "bias", bias)]))
    nodes[-1].outputs[0].shape = ir.Shape([None, None, weight.shape[1]])
    sizes = constant(model, "sizes", np.array(widths))
    split = ir.node("Split", [nodes[-1].outputs[0], sizes], {"axis": axis}, num_outputs=len(widths))
    for i, (output, width) in enumerate(zip(split.outputs, widths, strict=True)):
        output.name, output.type, output.shape = f"y{i}", FLOAT, ir.Shape([None, None, width])
    model.graph.extend([*nodes, split])
    model.graph.outputs.extend(split.outputs)
    return model


def run(model: ir.Model, x: Floats) -> list[NDArray[Any]]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, ["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 9),
    k=st.integers(1, 40),
    widths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    bias=st.booleans(),
    integers=st.booleans(),
)
def test_parts_are_the_columns_of_the_whole(
    seed: int, rows: int, k: int, widths: list[int], bias: bool, integers: bool
) -> None:
    x, weight = normal(seed, 2, rows, k), normal(seed + 1, k, sum(widths))
    offset = normal(seed + 2, sum(widths)) if bias else None
    model = split_product(weight, offset, widths)
    separate(model)
    assert "Split" not in [node.op_type for node in model.graph]
    assert "weight" not in model.graph.initializers
    if integers:
        quantize_dynamic(model)
        operators = [node.op_type for node in model.graph]
        assert operators == ["DynamicQuantizeLinear", *["MatMulIntegerToFloat"] * len(widths)]
    exact = x.astype(np.float64) @ weight + (0 if offset is None else offset)
    # an activation has 255 units from the lowest to the highest, a weight 127 of the largest
    bound = 1e-4 if not integers else k * np.ptp(np.append(x, 0)) * np.abs(weight).max() * (0.5 / 255 + 1 / 127)
    found = run(model, x)
    for part, expected in zip(found, np.split(exact, np.cumsum(widths)[:-1], axis=-1), strict=True):
        assert part.shape == expected.shape
        np.testing.assert_allclose(part, expected, atol=bound)


@pytest.mark.parametrize(("axis", "also"), [(1, False), (-1, True)], ids=["rows are split", "the whole is wanted too"])
def test_others_are_left_alone(axis: int, also: bool) -> None:
    model = split_product(normal(0, 4, 6), None, [2, 4] if axis == -1 else [1, 2], axis=axis)
    if also:
        whole = model.graph[0].outputs[0]
        whole.name, whole.type = "whole", FLOAT
        model.graph.outputs.append(whole)
    separate(model)
    assert [node.op_type for node in model.graph] == ["MatMul", "Split"]
