"""Weights in 8 bits: graphs of a few nodes, quantized and run, beside the same arithmetic written out in numpy."""

from collections.abc import Callable
from pathlib import Path
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

from heedful.export.plan import SPEECH, quantize
from heedful.export.quantize import quantize_blockwise, quantize_dynamic
from heedful.export.storage import store
from heedful.runtime.engine.device import session_options

Floats = NDArray[np.float32]
Form = Callable[[Floats, Floats], ir.Model]
Quantizer = Callable[[ir.Model], None]
QUANTIZERS = (quantize_dynamic, quantize_blockwise)


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def graph(nodes: list[onnx.NodeProto], constants: dict[str, NDArray[Any]]) -> ir.Model:
    """A model of `nodes`: what they read and none makes is an input, what none reads an output."""
    made = [name for each in nodes for name in each.output]
    read = dict.fromkeys(name for each in nodes for name in each.input)
    kinds = {"tokens": onnx.TensorProto.INT64}
    inputs = [name for name in read if name not in made and name not in constants]
    proto = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kinds.get(name, onnx.TensorProto.FLOAT), None) for name in inputs],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in made if name not in read],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    return ir.serde.deserialize_model(model)


def run(model: ir.Model, threads: int = 1, **inputs: NDArray[Any]) -> list[Floats]:
    return list(opened(model, threads).run(None, inputs))


def opened(model: ir.Model, threads: int = 1) -> ort.InferenceSession:
    content = ir.serde.serialize_model(model).SerializeToString()
    return ort.InferenceSession(content, session_options(threads), ["CPUExecutionProvider"])


def operators(model: ir.Model) -> list[str]:
    return [each.op_type for each in model.graph]


def stored(model: ir.Model) -> dict[str, NDArray[Any]]:
    values = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {name: value.numpy() for name, value in values.items() if value is not None}


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def error(found: Floats, expected: Floats) -> float:
    """Root mean square of the difference over that of what was expected."""
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


# A product with a matrix (k, n) as torch's exporter writes it: of Linear layers, with a bias, and of 2-D inputs.
def matmul(weight: Floats, bias: Floats) -> ir.Model:
    return graph([node("MatMul", "x w", "y")], {"w": weight})


def matmul_and_bias(weight: Floats, bias: Floats) -> ir.Model:
    return graph([node("MatMul", "x w", "product"), node("Add", "product b", "y")], {"w": weight, "b": bias})


def bias_and_matmul(weight: Floats, bias: Floats) -> ir.Model:
    return graph([node("MatMul", "x w", "product"), node("Add", "b product", "y")], {"w": weight, "b": bias})


def gemm(weight: Floats, bias: Floats) -> ir.Model:
    return graph([node("Gemm", "x w", "y", transB=1)], {"w": np.ascontiguousarray(weight.T)})


FORMS = (matmul, matmul_and_bias, bias_and_matmul, gemm)
BIASED = (matmul_and_bias, bias_and_matmul)
forms = st.sampled_from(FORMS)


def near_a_tie(quotient: NDArray[Any]) -> NDArray[np.bool_]:
    """Where two ways to divide may round to different integers."""
    near: NDArray[np.bool_] = np.abs(np.abs(quotient - np.floor(quotient)) - 0.5) < 1e-3
    return near


@settings(max_examples=60)
@given(rows=st.integers(1, 9), k=st.integers(1, 130), n=st.integers(1, 67), shift=st.sampled_from([-5, 0, 5]),
       seed=st.integers(0, 10**6), form=forms)  # fmt: skip
def test_dynamic_is_the_arithmetic_written_out(rows: int, k: int, n: int, shift: int, seed: int, form: Form) -> None:
    x, weight, bias = normal(seed, rows, k) + shift, 0.3 * normal(seed + 1, k, n), normal(seed + 2, n)
    model = form(weight, bias)
    quantize_dynamic(model)
    assert operators(model) == ["DynamicQuantizeLinear", "MatMulIntegerToFloat"]
    # activations: one scale and zero point for all, in uint8, as ONNX defines DynamicQuantizeLinear
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    step = (high - low) / 255
    zero = np.clip(np.rint(-low / step), 0, 255)
    codes = np.clip(np.rint(x / step) + zero, 0, 255) - zero
    # weights: one scale a column, in int8, 127 units of which are as much as two neighbours of one sign
    pairs = np.concatenate([weight, np.zeros((k % 2, n), np.float32)]).reshape(-1, 2, n)
    columns = np.max([(pairs * (sign * pairs > 0)).sum(axis=1) * sign for sign in (1, -1)], axis=(0, 1)) / 127
    rounded = np.rint(weight / columns) * columns
    expected = codes * step @ rounded + (bias if form in BIASED else 0)
    slack = (near_a_tie(x / step) * step) @ np.abs(rounded) + 1e-5
    (found,) = run(model, x=x)
    assert (np.abs(found - expected) <= slack).all()
    np.testing.assert_array_less(np.abs(rounded - weight), 0.501 * columns[None].repeat(k, 0))


def by_blocks(weight: Floats, size: int) -> tuple[NDArray[np.uint8], Floats]:
    """Codes (n, blocks, size) around 128 and scales (n, blocks) of a weight (k, n), one block at a time."""
    k, n = weight.shape
    codes, scales = np.empty((n, k // size, size), np.uint8), np.empty((n, k // size), np.float32)
    for column in range(n):
        for block in range(k // size):
            values = weight[block * size : (block + 1) * size, column]
            scales[column, block] = np.abs(values).max() / np.float32(127)
            codes[column, block] = 128 + np.rint(values / scales[column, block])
    return codes, scales


def restored(codes: NDArray[np.uint8], scales: Floats) -> Floats:
    """The matrix (n, k) that codes and scales stand for."""
    values: Floats = (codes.astype(np.float32) - 128) * scales[:, :, None]
    return values.reshape(len(codes), -1)


@settings(max_examples=60)
@given(rows=st.integers(1, 9), size=st.sampled_from([64, 32, 16]), blocks=st.integers(0, 4), n=st.integers(1, 67),
       seed=st.integers(0, 10**6), form=forms)  # fmt: skip
def test_blockwise_is_the_arithmetic_written_out(
    rows: int, size: int, blocks: int, n: int, seed: int, form: Form
) -> None:
    k = size * (2 * blocks + 1)  # an odd number of blocks: no larger block fits
    x, weight, bias = normal(seed, rows, k), 0.3 * normal(seed + 1, k, n), normal(seed + 2, n)
    model = form(weight, bias)
    quantize_blockwise(model)
    assert operators(model) == ["MatMulNBits"]
    codes, scales = by_blocks(weight, size)
    np.testing.assert_array_equal(stored(model)["w.uint8"], codes)
    np.testing.assert_array_equal(stored(model)["w.scale"], scales)
    # activations: one scale for each block of a row, in int8
    split = x.reshape(rows, -1, size)
    step = np.abs(split).max(axis=2, keepdims=True) / 127
    expected = (np.rint(split / step) * step).reshape(rows, k) @ restored(codes, scales).T
    slack = (near_a_tie(split / step) * step).reshape(rows, k) @ np.abs(restored(codes, scales)).T + 1e-4
    (found,) = run(model, x=x)
    assert (np.abs(found - expected - (bias if form in BIASED else 0)) <= slack).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_close_to_the_float_product(quantizer: Quantizer, form: Form) -> None:
    """Rounding to 127 levels of the largest of a few hundred normal values: about 1 % in weights and activations."""
    x, weight, bias = normal(1, 50, 384), 0.05 * normal(2, 384, 111), normal(3, 111)
    model = form(weight, bias)
    (expected,) = run(model, x=x)
    quantizer(model)
    (found,) = run(model, x=x)
    assert 1e-4 < error(found, expected) < 0.02


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_columns_of_zeros_and_silence_give_exactly_the_bias(quantizer: Quantizer) -> None:
    weight, bias = normal(1, 64, 5), normal(2, 5)
    weight[:, [0, 3]] = 0
    model = matmul_and_bias(weight, bias)
    quantizer(model)
    (found,) = run(model, x=normal(3, 4, 64))
    np.testing.assert_array_equal(found[:, [0, 3]], np.broadcast_to(bias[[0, 3]], (4, 2)))
    assert (found[:, [1, 2, 4]] != bias[[1, 2, 4]]).all()
    (silent,) = run(model, x=np.zeros((4, 64), np.float32))
    np.testing.assert_array_equal(silent, np.broadcast_to(bias, (4, 5)))


@pytest.mark.parametrize("k", [1, 7, 24, 100])
def test_blockwise_leaves_what_has_no_whole_blocks_in_float(k: int) -> None:
    x, weight = normal(1, 3, k), normal(2, k, 9)
    model = matmul(weight, weight[0])
    before = run(model, x=x)
    quantize_blockwise(model)
    assert operators(model) == ["MatMul"]
    np.testing.assert_array_equal(run(model, x=x), before)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("form", FORMS)
def test_the_float_weight_is_gone(form: Form, quantizer: Quantizer) -> None:
    model = form(normal(1, 128, 33), normal(2, 33))
    quantizer(model)
    bulk = {value.dtype for value in stored(model).values() if value.size >= 128 * 33}
    assert bulk <= {np.dtype(np.int8), np.dtype(np.uint8)}
    assert len(bulk) == 1


@pytest.mark.parametrize(("k", "n"), [(64, 1), (64, 33), (192, 127), (384, 64), (448, 96)])
def test_a_row_has_the_same_bits_in_a_batch_of_any_size(k: int, n: int) -> None:
    x, weight = normal(k, 16, k), 0.1 * normal(n, k, n)
    x[5] *= 1000  # a neighbour of another size altogether
    model = matmul(weight, weight[0])
    quantize_blockwise(model)
    session = opened(model, threads=2)
    alone = [session.run(None, {"x": row[None]})[0][0] for row in x]
    for batch in range(1, 17):
        for shape in [(batch, k), (batch, 1, k), (1, batch, k)]:
            (found,) = session.run(None, {"x": x[:batch].reshape(shape)})
            assert found.tobytes() == np.stack(alone[:batch]).tobytes(), shape
    (found,) = session.run(None, {"x": x[::-1]})
    assert found.tobytes() == np.stack(alone[::-1]).tobytes()


def tied(embedding: Floats) -> ir.Model:
    """Rows of `embedding` looked up, and logits over all of them."""
    nodes = [node("Gather", "embedding tokens", "rows", axis=0), node("Gemm", "x embedding", "logits", transB=1)]
    return graph(nodes, {"embedding": embedding})


def test_a_tied_embedding_is_stored_once_and_looked_up_in_its_codes(tmp_path: Path) -> None:
    embedding, x = 0.2 * normal(1, 77, 128), normal(2, 3, 128)
    tokens = np.array([[0, 76, 5, 5], [12, 1, 76, 40]])
    model = tied(embedding)
    quantize_blockwise(model)
    bulk = [value for value in stored(model).values() if value.nbytes >= embedding.size]
    assert {(str(value.dtype), value.tobytes()) for value in bulk} == {("uint8", bulk[0].tobytes())}
    assert bulk[0].size == embedding.size
    rows, logits = run(model, tokens=tokens, x=x)
    table = restored(*by_blocks(embedding.T, 64))
    np.testing.assert_array_equal(rows, table[tokens])
    assert error(logits, x @ table.T) < 0.01
    store({"model": model}, tmp_path)
    assert embedding.size <= (tmp_path / "weights.bin").stat().st_size < 2 * embedding.size


def test_a_weight_of_two_products_is_stored_once(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "y"), node("MatMul", "z w", "v")]
    for quantizer in QUANTIZERS:
        weight = normal(1, 64, 40)
        model = graph(nodes, {"w": weight})
        quantizer(model)
        x, z = normal(2, 3, 64), normal(3, 5, 64)
        for found, expected in zip(run(model, x=x, z=z), (x @ weight, z @ weight), strict=True):
            assert error(found, expected) < 0.02
        store({"model": model}, tmp_path)
        assert 64 * 40 <= (tmp_path / "weights.bin").stat().st_size < 2 * 64 * 40


W, STACK, B = 0.1 * normal(1, 64, 48), 0.1 * normal(2, 3, 64, 48), normal(3, 48)
# Each has a product that quantizing must not change the meaning of.
UNUSUAL = {
    "gemm with a bias of its own": ([node("Gemm", "x w b", "y", transB=0)], {"w": W, "b": B}),
    "gemm that transposes nothing": ([node("Gemm", "x w", "y")], {"w": W}),
    "gemm with a factor": ([node("Gemm", "x w", "y", transB=0, alpha=0.25)], {"w": W}),
    "gemm of a transposed input": (
        [node("Transpose", "x", "t", perm=[1, 0]), node("Gemm", "t w", "y", transA=1, transB=0)],
        {"w": W},
    ),
    "a stack of matrices": ([node("MatMul", "x w", "y")], {"w": STACK}),
    "a product read twice": (
        [node("MatMul", "x w", "p"), node("Add", "p b", "y"), node("Relu", "p", "z")],
        {"w": W, "b": B},
    ),
    "a number added": ([node("MatMul", "x w", "p"), node("Add", "p b", "y")], {"w": W, "b": B[:1]}),
    "a row of many added": ([node("MatMul", "x w", "p"), node("Add", "p b", "y")], {"w": W, "b": normal(4, 8, 48)}),
    "a product added to itself": ([node("MatMul", "x w", "p"), node("Add", "p p", "y")], {"w": W}),
}


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize(("nodes", "constants"), UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_products_keep_their_meaning(
    nodes: list[onnx.NodeProto], constants: dict[str, NDArray[Any]], quantizer: Quantizer
) -> None:
    model, x = graph(nodes, constants), normal(9, 8, 64)
    expected = run(model, x=x)
    quantizer(model)
    for found, wanted in zip(run(model, x=x), expected, strict=True):
        assert error(found, wanted) < 0.02


@pytest.mark.parametrize("rows", [1, 4, 40])
@pytest.mark.parametrize(("quantizer", "unit"), [(quantize_dynamic, 128 / 127), (quantize_blockwise, 1.0)])
def test_the_largest_integers_do_not_overflow(quantizer: Quantizer, unit: float, rows: int) -> None:
    """x86 without VNNI would cut off 127 * 255 + 127 * 255, which does not fit into 16 bits: half of it would be lost.

    Where two weights of 1 share 127 units they have 64 each.
    """
    model = graph([node("MatMul", "x w", "y")], {"w": np.ones((64, 16), np.float32)})
    quantizer(model)
    (found,) = run(model, x=np.ones((rows, 64), np.float32))
    np.testing.assert_allclose(found, 64.0 * unit, rtol=0.005)


def test_each_graph_by_its_plan() -> None:
    """The spectrum stays in float, and of the first layer what its error grows most from; encoders have one scale for
    an input, a scale a row for what leaves a GELU, beams a scale a row, others blocks.
    """
    names = [
        "log_mel.basis",
        "encoder.layers.0.attention.query_key_value.weight.2",
        "encoder.layers.0.attention.output.weight",
        "encoder.layers.0.attention.query_key_value.weight.1",
        "encoder.layers.10.attention.output.weight",
        "encoder.layers.0.feed_forward.inner.weight",
        "encoder.layers.10.feed_forward.output.weight",
    ]
    nodes = [node("MatMul", f"x {name}", f"y{i}") for i, name in enumerate(names)]
    row = ["Abs", "ReduceMax", "Mul", "Shape", "Expand", "QuantizeLinear", "MatMulIntegerToFloat", "Mul"]
    floats, whole = ["MatMul"] * 3, ["DynamicQuantizeLinear", "MatMulIntegerToFloat", "MatMulIntegerToFloat"]
    blocks = ["MatMul", *["MatMulNBits"] * 6]
    expected = {
        "encoder": [*floats, *whole, *row * 2],
        "decoder": blocks,
        "beams": ["MatMul", *row * 6],
        "aligner": blocks,
    }
    found = {}
    for name in SPEECH:
        model = graph(nodes, {name: normal(1, 64, 48) for name in names})
        quantize(SPEECH[name], model, {})
        found[name] = operators(model)
    assert found == expected
