"""Changes of shape in one step: the same numbers in the same places, by fewer operators."""

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from heedful.export.reshape import regroup_once, state_shapes

Node = onnx.NodeProto


@st.composite
def chains(draw: st.DrawFn) -> onnx.ModelProto:
    """Reshapes, squeezes, unsqueezes and transposes one after the other, some of whose outputs are wanted."""
    shape = draw(st.lists(st.sampled_from([1, 1, 2, 3]), min_size=1, max_size=4))
    nodes: list[Node] = []
    outputs, constants = [], []
    known = [helper.make_tensor_value_info("x.0", TensorProto.FLOAT, shape)]
    for i in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["Reshape", "Transpose", "Unsqueeze", "Squeeze", "Identity"]))
        inputs = [f"x.{i}"]
        attributes: dict[str, Any] = {}
        if kind == "Transpose":
            attributes["perm"] = draw(st.permutations(range(len(shape))))
            shape = [shape[axis] for axis in attributes["perm"]]
        elif kind != "Identity":
            if kind == "Reshape":
                cut = draw(st.integers(0, len(shape)))
                numbers = shape = [math.prod(shape[:cut]), math.prod(shape[cut:])]
            elif kind == "Unsqueeze":
                axis = draw(st.integers(0, len(shape)))
                numbers, shape = [axis], [*shape[:axis], 1, *shape[axis:]]
            else:
                numbers = [axis for axis, size in enumerate(shape) if size == 1][:1]
                assume(numbers and len(shape) > 1)
                shape = [size for axis, size in enumerate(shape) if axis not in numbers]
            constants.append(numpy_helper.from_array(np.array(numbers, np.int64), f"c.{i}"))
            inputs.append(f"c.{i}")
        nodes.append(helper.make_node(kind, inputs, [f"x.{i + 1}"], **attributes))
        known.append(helper.make_tensor_value_info(f"x.{i + 1}", TensorProto.FLOAT, shape))
        if draw(st.booleans()):
            outputs.append(known[-1])
    # something that is computed, so that no output is an input
    nodes.insert(0, helper.make_node("Neg", ["x"], ["x.0"]))
    first = helper.make_tensor_value_info("x", *(known[0].type.tensor_type.elem_type, known_shape(known[0])))
    graph = helper.make_graph(nodes, "chain", [first], outputs or known[-1:], constants, value_info=known)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def known_shape(value: onnx.ValueInfoProto) -> list[int]:
    return [size.dim_value for size in value.type.tensor_type.shape.dim]


def run(model: onnx.ModelProto) -> list[NDArray[Any]]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    found: list[NDArray[Any]] = session.run(None, {"x": np.arange(math.prod(shape), dtype=np.float32).reshape(shape)})
    return found


@given(model=chains())
def test_all_outputs_stay_what_they_were(model: onnx.ModelProto) -> None:
    changed = ir.serde.deserialize_model(model)
    regroup_once(changed)
    found = ir.serde.serialize_model(changed)
    onnx.checker.check_model(found)
    for output, expected in zip(run(found), run(model), strict=True):
        np.testing.assert_array_equal(output, expected)
        assert output.shape == expected.shape
    assert len(found.graph.node) <= len(model.graph.node)


def test_heads_of_a_single_token_are_cut_by_one_reshape() -> None:
    nodes = [
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node("Reshape", ["n", "cut"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1, 3]),
        helper.make_node("Transpose", ["t"], ["u"], perm=[0, 1, 3, 2]),
    ]
    shapes = {"n": [1, 1, 12], "r": [1, 1, 3, 4], "t": [1, 3, 1, 4], "u": [1, 3, 4, 1]}
    infos = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    cut = numpy_helper.from_array(np.array([1, 1, 3, 4], np.int64), "cut")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 12])
    graph = helper.make_graph(nodes, "heads", [x], [infos["u"]], [cut], value_info=[*infos.values()])
    model = ir.serde.deserialize_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    regroup_once(model)
    assert [node.op_type for node in model.graph] == ["Neg", "Reshape"]


def heads(model: str, before: list[str | int], after: list[str | int]) -> ir.Model:
    """`x` (before) regrouped to (after), by a shape that is computed: its first two sizes are those that are there."""
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"], end=2),
        helper.make_node("Concat", ["sizes", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"], allowzero=1),
    ]
    rest = numpy_helper.from_array(np.array(after[2:], np.int64), "rest")
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)
        for name, sizes in zip("xy", (before, after), strict=True)
    ]
    graph = helper.make_graph(nodes, model, values[:1], values[1:], [rest])
    opsets = [helper.make_opsetid("", 21)]
    return ir.serde.deserialize_model(helper.make_model(graph, opset_imports=opsets, ir_version=10))


@given(batch=st.integers(0, 3), tokens=st.integers(0, 3))
def test_a_shape_of_sizes_that_stay_is_stated(batch: int, tokens: int) -> None:
    model = heads("cut", ["b", "n", 12], ["b", "n", 3, 4])
    state_shapes(model)
    shape = model.graph.node(2).inputs[1]
    assert shape is not None
    assert shape.const_value is not None
    assert shape.const_value.numpy().tolist() == [0, 0, 3, 4]
    session = ort.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.arange(batch * tokens * 12, dtype=np.float32).reshape(batch, tokens, 12)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x.reshape(batch, tokens, 3, 4))


@pytest.mark.parametrize("before", [["n", "b", 12], [2, 3, 12], ["b*n", 12]])
def test_a_shape_of_sizes_that_move_is_left_alone(before: list[str | int]) -> None:
    model = heads("moved", before, ["b", "n", 3, 4])
    state_shapes(model)
    shape = model.graph.node(2).inputs[1]
    assert shape is not None
    assert shape.producer() is not None
