"""Products of integers, their scales known or found row by row, beside the same arithmetic written out in integers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from heedful.export.integer import Scales, find_scales, quantize_known, quantize_rows, quantize_tables, set_scales
from heedful.export.storage import store
from heedful.runtime.engine.device import session_options

Floats = NDArray[np.float32]
# the largest integer of a weight
MOST = 127


def model(nodes: list[onnx.NodeProto], constants: dict[str, NDArray[Any]]) -> ir.Model:
    """What `nodes` read and none makes is an input, what none reads an output."""
    made = [name for each in nodes for name in each.output]
    read = dict.fromkeys(name for each in nodes for name in each.input)
    kinds = {"tokens": TensorProto.INT64}
    inputs = [name for name in read if name not in made and name not in constants]
    proto = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), None) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in made if name not in read],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 24)]
    return ir.serde.deserialize_model(helper.make_model(proto, opset_imports=opsets, ir_version=10))


def run(graph: ir.Model, **inputs: NDArray[Any]) -> list[Floats]:
    data = ir.serde.serialize_model(graph).SerializeToString()
    session = ort.InferenceSession(data, session_options(), providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


def stored(graph: ir.Model) -> list[tuple[str, int]]:
    """Types and sizes of the constants that are matrices."""
    values = [value.const_value for value in graph.graph.initializers.values()]
    return [(str(value.numpy().dtype), value.size) for value in values if value is not None and len(value.shape) == 2]


def operators(graph: ir.Model) -> list[str]:
    return [node.op_type for node in graph.graph]


def fitting(units: NDArray[Any]) -> NDArray[Any]:
    """`units` (k, n), the second of two neighbours as large as the first leaves it of what both may be together."""
    first, second = units[: len(units) // 2 * 2 : 2], units[1::2]
    left = MOST - np.abs(first)
    units[1::2] = np.where(first * second.astype(np.int64) > 0, np.clip(second, -left, left), second)
    return units


# A product with a matrix (k, n) as torch's exporter writes it. Names in graphs begin with `model.`, in modules not.
def matmul(weight: Floats, bias: Floats) -> ir.Model:
    return model([helper.make_node("MatMul", ["x", "model.w"], ["y"])], {"model.w": weight})


def matmul_and_bias(weight: Floats, bias: Floats) -> ir.Model:
    nodes = [helper.make_node("MatMul", ["x", "model.w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
    return model(nodes, {"model.w": weight, "b": bias})


def gemm(weight: Floats, bias: Floats) -> ir.Model:
    nodes = [helper.make_node("Gemm", ["x", "model.w"], ["y"], transB=1)]
    return model(nodes, {"model.w": np.ascontiguousarray(weight.T)})


def gemm_and_bias(weight: Floats, bias: Floats) -> ir.Model:
    nodes = [
        helper.make_node("Gemm", ["x", "model.w"], ["p"], transB=1),
        helper.make_node("Add", ["b", "p"], ["y"]),
    ]
    return model(nodes, {"model.w": np.ascontiguousarray(weight.T), "b": bias})


Form = Callable[[Floats, Floats], ir.Model]
PRODUCTS: dict[Form, list[str]] = {
    matmul: ["QuantizeLinear", "MatMulIntegerToFloat"],
    matmul_and_bias: ["QuantizeLinear", "MatMulIntegerToFloat"],
    gemm: ["QuantizeLinear", "QGemm"],
    gemm_and_bias: ["QuantizeLinear", "QGemm"],
}


def in_integers(
    x: Floats, activation: float, codes: NDArray[np.integer[Any]], columns: Floats, bias: NDArray[Any]
) -> Floats:
    """x (m, k), rounded to even as uint8 with its zero at 128, times codes (k, n); all between is exact."""
    rounded = np.clip(np.rint(x / np.float32(activation)), -128, 127).astype(np.int64)
    result: Floats = ((rounded @ codes) * (activation * columns.astype(np.float64)) + bias).astype(np.float32)
    return result


@settings(max_examples=80)
@given(
    rows=st.integers(1, 9), k=st.integers(1, 130), n=st.integers(1, 67), seed=st.integers(0, 10**6),
    activation=st.floats(0.005, 0.2), form=st.sampled_from(list(PRODUCTS)),
)  # fmt: skip
def test_a_product_is_that_of_integers(rows: int, k: int, n: int, seed: int, activation: float, form: Form) -> None:
    """Weights are no whole multiples of their scales, and some of the input is cut off."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, k), np.float32)
    columns = rng.uniform(0.001, 0.01, n).astype(np.float32)
    weight = (fitting(rng.uniform(-MOST, MOST, (k, n))) * columns).astype(np.float32)
    bias = rng.standard_normal(n, np.float32)
    graph = form(weight, bias)
    quantize_known(graph, {"w": Scales(activation, columns)})
    assert operators(graph) == PRODUCTS[form]
    assert stored(graph) == [("int8", k * n)]
    biased = form in (matmul_and_bias, gemm_and_bias)
    units = activation * columns.astype(np.float64)
    # that of a Gemm is a whole number of units too
    added = np.rint(bias / units) * units if form is gemm_and_bias else bias * biased
    expected = in_integers(x, activation, np.rint(weight / columns).astype(np.int64), columns, added)
    (found,) = run(graph, x=x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("scale", [0.01, 0.05])
def test_what_leaves_a_relu_has_all_integers_above_zero(scale: float) -> None:
    """And needs no node for it: with the smaller scale some of it is cut off at 255 units too."""
    rng = np.random.default_rng(3)
    codes = fitting(rng.integers(-MOST, MOST, (40, 7), endpoint=True))
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("MatMul", ["r", "model.w"], ["y"])]
    graph = model(nodes, {"model.w": (codes * 0.01).astype(np.float32)})
    quantize_known(graph, {"w": Scales(scale, np.full(7, 0.01, np.float32))})
    assert operators(graph) == ["QuantizeLinear", "MatMulIntegerToFloat"]
    x = rng.standard_normal((5, 40), np.float32) * 2
    expected = np.clip(np.rint(x / np.float32(scale)), 0, 255) @ codes * (scale * 0.01)
    (found,) = run(graph, x=x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_relu_that_others_read_stays() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("MatMul", ["r", "model.w"], ["y"]),
        helper.make_node("Neg", ["r"], ["z"]),
    ]
    graph = model(nodes, {"model.w": np.eye(8, dtype=np.float32)})
    quantize_known(graph, {"w": Scales(0.1, np.full(8, 1 / MOST, np.float32))})
    assert operators(graph) == ["Relu", "QuantizeLinear", "MatMulIntegerToFloat", "Neg"]


@pytest.mark.parametrize("form", PRODUCTS)
def test_half_units_are_rounded_to_even(form: Form) -> None:
    x = np.array([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]], np.float32).T * 0.25
    graph = form(np.full((1, 2), 0.5, np.float32), np.zeros(2, np.float32))
    quantize_known(graph, {"w": Scales(0.25, np.full(2, 0.5, np.float32))})
    (found,) = run(graph, x=x)
    assert (found[:, 0] / 0.125).tolist() == [-2, -2, 0, 0, 2, 2]


@pytest.mark.parametrize("form", PRODUCTS)
def test_what_no_integer_stands_for_is_cut_off(form: Form) -> None:
    graph = form(np.array([[2.0, -2.0, 0.01]], np.float32), np.zeros(3, np.float32))
    quantize_known(graph, {"w": Scales(1.0, np.full(3, 0.01, np.float32))})
    (found,) = run(graph, x=np.array([[1.0], [1e6], [-1e6]], np.float32))
    np.testing.assert_allclose(found, np.outer([1, 127, -128], [1.27, -1.27, 0.01]), rtol=1e-6)


def known(graph: ir.Model) -> None:
    quantize_known(graph, {"w": Scales(0.02, np.full(33, 0.01, np.float32))})


@pytest.mark.parametrize("quantizer", [known, quantize_rows])
def test_a_row_has_the_same_bits_in_any_batch(quantizer: Callable[[ir.Model], None]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 64), np.float32)
    for form in PRODUCTS:
        graph = form(rng.uniform(-0.6, 0.6, (64, 33)).astype(np.float32), rng.standard_normal(33, np.float32))
        quantizer(graph)
        (together,) = run(graph, x=x)
        alone = np.concatenate([run(graph, x=row[None])[0] for row in x])
        assert together.tobytes() == alone.tobytes()


def test_what_has_no_scales_stays_as_it_is() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 5), np.float32)
    for form in PRODUCTS:
        graph = form(weight, weight[0])
        before = operators(graph)
        quantize_known(graph, {"v": Scales(0.1, np.ones(5, np.float32))})
        quantize_rows(graph, "v$")
        quantize_tables(graph, "w$")
        assert operators(graph) == before


def by_columns(weight: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Codes (k, n) of a weight, and the scale of each column: 127 units are as much as two neighbours of one sign."""
    rows = [*weight, *[np.zeros_like(weight[0])] * (len(weight) % 2)]
    sides = [np.clip(sign * np.array(rows), 0, None) for sign in (1, -1)]
    columns = np.max([side[::2] + side[1::2] for side in sides], axis=(0, 1)) / np.float32(127)
    return np.rint(weight / columns).astype(np.int64), columns


@settings(max_examples=80)
@given(
    rows=st.integers(1, 9), k=st.integers(1, 130), n=st.integers(1, 67), seed=st.integers(0, 10**6),
    size=st.sampled_from([1e-3, 1.0, 1e3]), form=st.sampled_from(list(PRODUCTS)),
)  # fmt: skip
def test_a_scale_is_found_for_every_row(rows: int, k: int, n: int, seed: int, size: float, form: Form) -> None:
    """However large the others are."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, k), np.float32) * np.float32(size) ** rng.integers(3, size=(rows, 1)).astype(
        np.float32
    )
    weight, bias = rng.standard_normal((k, n), np.float32), rng.standard_normal(n, np.float32)
    graph = form(weight, bias)
    quantize_rows(graph)
    assert set(PRODUCTS[form]) < set(operators(graph))
    assert stored(graph) == [("int8", k * n)]
    codes, columns = by_columns(weight)
    units = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    # a quotient within rounding of a half may go either way
    near = np.abs(np.abs(x / units) % 1 - 0.5) < 1e-4
    expected = (np.rint(x / units).astype(np.int64) @ codes) * (units.astype(np.float64) * columns)
    slack = (near.astype(np.int64) @ np.abs(codes)) * (units * columns) + 1e-5 * np.abs(expected).max() + 1e-9
    (found,) = run(graph, x=x)
    assert (np.abs(found - expected - bias * (form in (matmul_and_bias, gemm_and_bias))) <= slack + 1e-6).all()


@pytest.mark.parametrize("form", PRODUCTS)
def test_a_row_of_zeros_gives_the_bias(form: Form) -> None:
    rng = np.random.default_rng(0)
    x, bias = rng.standard_normal((3, 8), np.float32), rng.standard_normal(5, np.float32)
    x[1] = 0
    graph = form(rng.standard_normal((8, 5), np.float32), bias)
    quantize_rows(graph)
    (found,) = run(graph, x=x)
    np.testing.assert_array_equal(found[1], bias * (form in (matmul_and_bias, gemm_and_bias)))
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("sizes", "shapes"),
    [(((None, 8), (None, 8)), 2), ((("rows", 8), ("other", 8)), 2), ((("rows", 8), ("rows", 8)), 1)],
    ids=["unknown", "different", "alike"],
)
def test_inputs_share_zero_points_where_they_are_known_to_be_alike(sizes: Any, shapes: int) -> None:
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal((8, 5), np.float32) for i in range(2)}
    graph = model([helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"y{i}"]) for i in range(2)], weights)
    for value, size in zip(graph.graph.inputs, sizes, strict=True):
        value.shape = ir.Shape(size)
    quantize_rows(graph)
    assert operators(graph).count("Shape") == shapes
    # as many rows as may be unlike
    inputs = {f"x{i}": rng.standard_normal((3 + i * (shapes - 1), 8), np.float32) for i in range(2)}
    for i, found in enumerate(run(graph, **inputs)):
        np.testing.assert_allclose(found, inputs[f"x{i}"] @ weights[f"w{i}"], atol=0.1)


VOCABULARY, WIDTH, UNIT, ACTIVATION = 53, 32, 0.02, 0.05


def table() -> tuple[Floats, NDArray[np.int8]]:
    """An embedding, and the integers that stand for it."""
    rng = np.random.default_rng(1)
    codes = fitting(rng.integers(-MOST, MOST, (WIDTH, VOCABULARY), np.int8, endpoint=True)).T
    return ((codes + rng.uniform(-0.4, 0.4, codes.shape)) * UNIT).astype(np.float32), codes


def reads(embedding: Floats) -> ir.Model:
    return model([helper.make_node("Gather", ["model.tokens.weight", "tokens"], ["rows"])],
                 {"model.tokens.weight": embedding})  # fmt: skip


def writes(embedding: Floats) -> ir.Model:
    nodes = [
        helper.make_node("Gather", ["model.tokens.weight", "tokens"], ["rows"]),
        helper.make_node("Gemm", ["x", "model.tokens.weight"], ["logits"], transB=1),
    ]
    return model(nodes, {"model.tokens.weight": embedding})


SCALES = {"tokens.weight": Scales(ACTIVATION, np.full(VOCABULARY, UNIT, np.float32))}


def test_lookups_are_of_the_integers() -> None:
    embedding, codes = table()
    tokens = np.array([[0, 52, 7, 7], [1, 2, 3, 0]])
    graph = reads(embedding)
    quantize_known(graph, SCALES)
    (found,) = run(graph, tokens=tokens)
    np.testing.assert_array_equal(found, codes[tokens] * np.float32(UNIT))
    assert stored(graph) == [("int8", VOCABULARY * WIDTH)]


def test_an_embedding_is_one_matrix_for_lookups_and_logits() -> None:
    embedding, codes = table()
    graph, tokens = writes(embedding), np.array([[5, 6]])
    x = np.random.default_rng(2).standard_normal((3, WIDTH), np.float32)
    quantize_known(graph, SCALES)
    assert stored(graph) == [("int8", VOCABULARY * WIDTH)]
    rows, logits = run(graph, tokens=tokens, x=x)
    np.testing.assert_array_equal(rows, codes[tokens] * np.float32(UNIT))
    columns = SCALES["tokens.weight"].columns
    expected = in_integers(x, ACTIVATION, codes.T, columns, np.zeros(VOCABULARY, np.float32))
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_rows_of_a_table_may_have_scales_of_their_own() -> None:
    """Looked up alone, or beside a product with the same matrix, it is stored alike."""
    embedding = table()[0] * np.linspace(0.1, 2, VOCABULARY, dtype=np.float32)[:, None]
    tokens = np.array([[0, 52, 7, 7], [1, 2, 3, 0]])
    looked, tied = reads(embedding), writes(embedding)
    quantize_tables(looked, r"tokens\.weight$")
    quantize_rows(tied)
    codes, units = by_columns(embedding.T)
    expected = codes.T[tokens] * units[tokens][..., None].astype(np.float64)
    (found,) = run(looked, tokens=tokens)
    rows, _ = run(tied, tokens=tokens, x=np.ones((1, WIDTH), np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(rows, found)
    for graph in (looked, tied):
        values = [value.const_value for value in graph.graph.initializers.values()]
        data = {value.tobytes() for value in values if value is not None}
        assert {codes.T.astype(np.int8).tobytes(), units.tobytes()} <= data


def large(path: Path) -> dict[str, tuple[int, int]]:
    """Where in the weights' file the graph at `path` has its constants: offset and length."""
    places = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            places[tensor.name] = int(entries["offset"]), int(entries["length"])
    return places


def test_encoder_and_decoder_share_the_embedding(tmp_path: Path) -> None:
    embedding, codes = table()
    graphs = {"encoder": reads(embedding), "decoder": writes(embedding)}
    for graph in graphs.values():
        quantize_known(graph, SCALES)
    store(graphs, tmp_path)
    places = [*large(tmp_path / "encoder.onnx").values(), *large(tmp_path / "decoder.onnx").values()]
    assert places == [(0, VOCABULARY * WIDTH)] * 2
    np.testing.assert_array_equal(np.fromfile(tmp_path / "weights.bin", np.int8), codes.ravel())
    session = ort.InferenceSession(tmp_path / "encoder.onnx", session_options(), providers=["CPUExecutionProvider"])
    (rows,) = session.run(None, {"tokens": np.array([[9]])})
    np.testing.assert_array_equal(rows, codes[None, [9]] * np.float32(UNIT))


def test_scales_are_noted_with_the_module_under_all_its_names() -> None:
    inner = nn.Linear(3, 2)
    set_scales(inner, 0.25, torch.tensor([0.5, 0.125]))
    found = find_scales(nn.ModuleDict({"a": inner, "b": nn.Sequential(inner, nn.Linear(2, 2))}))
    assert {name: (scales.activation, scales.columns.tolist()) for name, scales in found.items()} == {
        "a.weight": (0.25, [0.5, 0.125]),
        "b.0.weight": (0.25, [0.5, 0.125]),
    }
    assert set(inner.state_dict()) == {"weight", "bias"}


@pytest.mark.network
def test_a_real_student_has_its_embedding_once(translate_bundle: Callable[[str], Path]) -> None:
    bundle = translate_bundle("int8")
    manifest = json.loads((bundle / "bundle.json").read_text())
    size = manifest["decoder"]["vocabulary"] * 256
    graphs = sorted(name for name in manifest["files"] if name.endswith(".onnx"))
    places = {name: {place for place in large(bundle / name).values() if place[1] >= size} for name in graphs}
    assert {"encoder.onnx", "decoder.onnx", "aligner.onnx"} <= set(graphs)
    (place,) = set.union(*places.values())
    assert place[1] == size
    # and all other matrices in a byte a number too
    assert manifest["files"]["weights.bin"]["bytes"] < 1.2 * manifest["parameters"]
