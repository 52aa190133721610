"""Weights of several graphs in one file: read back by onnx, run by onnxruntime, laid out as the layout promises."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
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

from heedful.export.constants import part_of
from heedful.export.storage import store

Array = NDArray[Any]
Weights = dict[str, Array]
# (file, offset, length) by the name of the tensor, of those that lie outside their graph
Places = dict[str, tuple[str, int, int]]

PAGE, LARGE = 4096, 1024
TYPES = ("float32", "float16", "int8", "uint8", "int64", "bool")


def linear(weight: Array, bias: Array) -> ir.Model:
    """y = x weight + bias."""
    return model({"weight": weight, "bias": bias}, {"x": ["n", len(weight)]}, ["MatMul x weight p", "Add p bias y"])


def model(weights: Weights, inputs: Mapping[str, Any], nodes: list[str]) -> ir.Model:
    made = [helper.make_node(name, rest[:-1], rest[-1:]) for name, *rest in map(str.split, nodes)]
    read = {name for node in made for name in node.input}
    proto = helper.make_graph(
        made,
        "graph",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            for node in made
            for name in node.output
            if name not in read
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opset = helper.make_opsetid("", 24)
    return ir.serde.deserialize_model(helper.make_model(proto, opset_imports=[opset], ir_version=10))


def places(path: Path) -> Places:
    initializers = onnx.load(path, load_external_data=False).graph.initializer
    entries = {each.name: {entry.key: entry.value for entry in each.external_data} for each in initializers}
    return {name: (e["location"], int(e["offset"]), int(e["length"])) for name, e in entries.items() if e}


def read(path: Path) -> Weights:
    """As the onnx package reads them."""
    return {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@st.composite
def weight(draw: st.DrawFn) -> Array:
    """Few different contents, in few shapes and types: many are equal, many more are equal but for shape or type."""
    dtype = np.dtype(draw(st.sampled_from(TYPES)))
    count = draw(st.sampled_from([0, LARGE - 8, LARGE, LARGE + 8, PAGE, PAGE + 8])) // dtype.itemsize
    content = np.random.default_rng(draw(st.integers(0, 2))).integers(0, 2, count).astype(dtype)
    return content.reshape(draw(st.sampled_from([(-1,), (-1, 1), (1, -1)])) if count else (0,))


@settings(max_examples=60)
@given(graphs=st.lists(st.lists(weight(), max_size=5), min_size=1, max_size=3))
def test_every_weight_comes_back_and_different_ones_lie_in_pages_of_their_own(graphs: list[list[Array]]) -> None:
    weights = {f"graph{i}": {f"w{j}": value for j, value in enumerate(each)} for i, each in enumerate(graphs)}
    with TemporaryDirectory() as name:
        folder = Path(name)
        used = {name: [f"Identity {key} {key}.used" for key in each] for name, each in weights.items()}
        files = store({name: model(each, {}, used[name]) for name, each in weights.items()}, folder)
        assert sorted(files) == sorted(path.name for path in folder.iterdir())
        assert files == ["weights.bin", *(f"{name}.onnx" for name in weights)]
        found = {name: read(folder / f"{name}.onnx") for name in weights}
        outside = {name: places(folder / f"{name}.onnx") for name in weights}
        size = (folder / "weights.bin").stat().st_size
    for name, each in weights.items():
        assert found[name].keys() == each.keys()
        for key, value in each.items():
            assert (found[name][key].dtype, found[name][key].shape) == (value.dtype, value.shape)
            np.testing.assert_array_equal(found[name][key], value)
        assert outside[name].keys() == {key for key, value in each.items() if value.nbytes >= LARGE}
    spots = sorted({spot for each in outside.values() for spot in each.values()})
    large = [value.tobytes() for each in weights.values() for value in each.values() if value.nbytes >= LARGE]
    assert len(spots) == len(set(large))
    assert all((file, offset % PAGE) == ("weights.bin", 0) for file, offset, _ in spots)
    ends = [offset + length for _, offset, length in spots]
    assert all(end <= offset < end + PAGE for end, (_, offset, _) in zip(ends, spots[1:], strict=False))
    assert size == max(ends, default=0)


def test_graphs_run_from_wherever_they_are_moved(tmp_path: Path) -> None:
    shared, own, bias = normal(0, 40, 30), normal(1, 40, 30), normal(2, 30)
    (tmp_path / "made").mkdir()
    models = {"first": linear(shared, bias), "second": linear(shared, bias), "third": linear(own, bias)}
    store(models, tmp_path / "made")
    folder = tmp_path / "elsewhere" / "moved"
    shutil.copytree(tmp_path / "made", folder)
    shutil.rmtree(tmp_path / "made")
    x = normal(3, 5, 40)
    for name, weight in {"first": shared, "second": shared, "third": own}.items():
        session = ort.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ weight + bias, rtol=1e-5, atol=1e-5)
    assert places(folder / "first.onnx") == places(folder / "second.onnx") != places(folder / "third.onnx")


def test_the_weights_go_by_the_name_they_are_given(tmp_path: Path) -> None:
    assert store({"only": linear(normal(0, 40, 30), normal(1, 30))}, tmp_path, "other.data") == [
        "other.data",
        "only.onnx",
    ]
    assert places(tmp_path / "only.onnx") == {"weight": ("other.data", 0, 4 * 40 * 30)}


@settings(max_examples=25)
@given(start=st.integers(0, 39), count=st.integers(9, 40))
def test_a_part_lies_in_its_whole(start: int, count: int) -> None:
    weight, bias = normal(0, 60, 30), normal(1, 30)
    count = min(count, 60 - start)
    made = linear(weight, bias)
    part = part_of(made, made.graph.initializers["weight"], "few", start, start + count)
    z = ir.Value(name="z", shape=ir.Shape(["n", count]), type=ir.TensorType(ir.DataType.FLOAT))
    product = ir.node("MatMul", [z, part])
    product.outputs[0].name, product.outputs[0].type = "q", z.type
    made.graph.inputs.append(z)
    made.graph.outputs.append(product.outputs[0])
    made.graph.append(product)
    with TemporaryDirectory() as name:
        folder = Path(name)
        store({"only": made}, folder)
        (_, whole, _), few = (places(folder / "only.onnx")[key] for key in ("weight", "weight.few"))
        assert few == ("weights.bin", whole + start * 30 * 4, count * 30 * 4)
        assert (folder / "weights.bin").stat().st_size == weight.nbytes
        session = ort.InferenceSession(folder / "only.onnx", providers=["CPUExecutionProvider"])
        feed = {"x": normal(2, 5, 60), "z": normal(3, 5, count)}
        y, q = session.run(["y", "q"], feed)
    np.testing.assert_allclose(y, feed["x"] @ weight + bias, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(q, feed["z"] @ weight[start : start + count], rtol=1e-4, atol=1e-4)


def test_what_no_node_uses_is_left_out(tmp_path: Path) -> None:
    weight, bias, spare = normal(0, 40, 30), normal(1, 30), normal(2, 40, 30)
    nodes = ["MatMul x weight p", "Add p bias y"]
    store({"only": model({"weight": weight, "bias": bias, "spare": spare}, {"x": ["n", 40]}, nodes)}, tmp_path)
    assert read(tmp_path / "only.onnx").keys() == {"weight", "bias"}
    assert (tmp_path / "weights.bin").stat().st_size == weight.nbytes


def test_a_model_stored_can_be_used_further(tmp_path: Path) -> None:
    weight = normal(0, 40, 30)
    kept = linear(weight, normal(1, 30))
    store({"only": kept}, tmp_path)
    value = kept.graph.initializers["weight"].const_value
    assert value is not None
    np.testing.assert_array_equal(value.numpy(), weight)


def test_a_bundle_holds_the_decoder_once(seeded_bundle: Path) -> None:
    """The aligner is the decoder again: it adds a graph, but no weight."""
    found = {name: places(seeded_bundle / f"{name}.onnx") for name in ("encoder", "decoder", "aligner")}
    assert found["aligner"].items() <= found["decoder"].items()
    # beside its weights the decoder has the tokens that its rules are about, and parts of the matrix of its logits
    own = {name: spot for name, spot in found["decoder"].items() if name not in found["aligner"]}
    _, first, length = found["decoder"]["decoder.tokens.weight"]
    assert all(
        name.startswith("speech.") or first <= offset < offset + size <= first + length
        for name, (_, offset, size) in own.items()
    )
    assert not set(found["encoder"].values()) & set(found["decoder"].values())
    stated = {length for each in found.values() for _, _, length in each.values()}
    assert min(stated) >= LARGE
    # none of the graphs carries the weights beside the file
    assert sum((seeded_bundle / f"{name}.onnx").stat().st_size for name in found) < 300_000


@pytest.mark.parametrize("name", ["encoder", "decoder", "aligner"])
def test_the_graphs_of_a_bundle_need_the_weights_and_nothing_else(
    seeded_bundle: Path, tmp_path: Path, name: str
) -> None:
    shutil.copy(seeded_bundle / f"{name}.onnx", tmp_path)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception, match=r"weights\.bin"):
        ort.InferenceSession(tmp_path / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    shutil.copy(seeded_bundle / "weights.bin", tmp_path)
    session = ort.InferenceSession(tmp_path / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    assert session.get_inputs()
