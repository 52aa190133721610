"""Attention over a memory of integers, from encoder to decoder, beside the same in float64."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from heedful.export.integer_memory import attend_in_integers, quantize_remembered, restore_memory, restored
from heedful.runtime.engine.device import session_options

Array = NDArray[Any]
FLOAT = ir.TensorType(ir.DataType.FLOAT)


def value(name: str, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=FLOAT)


def named(node: ir.Node, name: str, *shape: int | str) -> ir.Node:
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, FLOAT, ir.Shape(shape)
    return node


def graph(inputs: list[ir.Value], nodes: list[ir.Node]) -> ir.Model:
    outputs = [node.outputs[0] for node in nodes]
    return ir.Model(ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": 24}), ir_version=11)


def encoder(heads: int, frames: int, width: int, layers: int) -> ir.Model:
    """Hands over what it is given, as the memory of each layer."""
    shape = ("b", heads, frames, width)
    names = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    inputs = [value(name, *shape) for name in names]
    nodes = [
        named(ir.node("Identity", [each]), f"memory.{name}", *shape) for name, each in zip(names, inputs, strict=True)
    ]
    return graph(inputs, nodes)


def decoder(heads: int, frames: int, width: int, layers: int) -> ir.Model:
    """The attention of each layer to its memory."""
    inputs = [value("query", "b", heads, "n", width)]
    nodes = []
    for layer in range(layers):
        memory = [value(f"memory.{layer}.{part}", "b", heads, frames, width) for part in ("key", "value")]
        inputs += memory
        node = ir.node("Attention", [inputs[0], *memory], {"scale": 1.0})
        nodes.append(named(node, f"output.{layer}", "b", heads, "n", width))
    return graph(inputs, nodes)


def run(model: ir.Model, feeds: dict[str, Array]) -> dict[str, Array]:
    content = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(content, session_options(), providers=["CPUExecutionProvider"])
    asked = {each.name for each in session.get_inputs()}
    assert asked == feeds.keys()
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, feeds), strict=True))


def remembered(feeds: dict[str, Array]) -> dict[str, Array]:
    """What a quantized encoder hands over."""
    _, heads, frames, width = feeds["0.key"].shape
    model = encoder(heads, frames, width, len(feeds) // 2)
    quantize_remembered(model)
    return run(model, feeds)


def attended(query: Array, feeds: dict[str, Array]) -> list[Array]:
    """What a quantized decoder makes of it, layer by layer."""
    _, heads, frames, width = feeds["0.key"].shape
    model = decoder(heads, frames, width, len(feeds) // 2)
    attend_in_integers(model)
    return list(run(model, {"query": query} | remembered(feeds)).values())


def shares(query: Array, key: Array) -> Array:
    """softmax(Q K^T) in float64."""
    scores = query.astype(np.float64) @ key.astype(np.float64).swapaxes(-1, -2)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    found: Array = weights / weights.sum(-1, keepdims=True)
    return found


def expected(query: Array, key: Array, values: Array) -> Array:
    """softmax(Q K^T) V in float64."""
    return shares(query, key) @ values.astype(np.float64)


def made(seed: int, batch: int, heads: int, frames: int, width: int, layers: int = 1) -> dict[str, Array]:
    """Keys that differ from frame to frame and share a mean, as those of a trained model do."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for layer in range(layers):
        keys = rng.normal(0, 1, (batch, heads, frames, width)) + rng.normal(0, 3, (1, heads, 1, width))
        feeds[f"{layer}.key"] = keys.astype(np.float32)
        feeds[f"{layer}.value"] = rng.normal(0, 1, (batch, heads, frames, width)).astype(np.float32)
    return feeds


def error(found: Array, reference: Array) -> float:
    return float(np.sqrt(((found - reference) ** 2).mean() / (reference**2).mean()))


# whole blocks, blocks that divide the frames, and a number of frames that nothing divides
@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6), batch=st.integers(1, 3), heads=st.integers(1, 4), queries=st.integers(1, 9),
    frames=st.sampled_from([2, 7, 50, 320, 322, 331, 400, 1500]), width=st.sampled_from([8, 16, 64]),
)  # fmt: skip
def test_it_is_attention(seed: int, batch: int, heads: int, queries: int, frames: int, width: int) -> None:
    feeds = made(seed, batch, heads, frames, width, layers=2)
    query = np.random.default_rng(seed + 1).normal(0, width**-0.5, (batch, heads, queries, width)).astype(np.float32)
    for layer, found in enumerate(attended(query, feeds)):
        key, values = feeds[f"{layer}.key"], feeds[f"{layer}.value"]
        # beside what values of size 1 come to: those of many frames may come to nothing
        size = np.sqrt((shares(query, key) ** 2).sum(-1).mean())
        off = np.sqrt(((found - expected(query, key, values)) ** 2).mean()) / size
        assert off < 0.05 + 0.1 / np.sqrt(found.size)  # the fewer, the more is left to chance


def test_it_is_attention_to_three_percent() -> None:
    """Where there is enough of it for chance to play no part."""
    feeds = made(0, 2, 6, 1500, 64)
    query = np.random.default_rng(1).normal(0, 1 / 8, (2, 6, 9, 64)).astype(np.float32)
    (found,) = attended(query, feeds)
    assert error(found, expected(query, feeds["0.key"], feeds["0.value"])) < 0.03


def test_queries_and_inputs_do_not_depend_on_one_another() -> None:
    """To the last bit, as decoding needs."""
    feeds = made(0, 3, 4, 300, 16)
    query = np.random.default_rng(1).normal(0, 1, (3, 4, 9, 16)).astype(np.float32)
    (together,) = attended(query, feeds)
    for row in range(3):
        alone = {name: part[row : row + 1] for name, part in feeds.items()}
        for number in range(9):
            (one,) = attended(query[row : row + 1, :, number : number + 1], alone)
            np.testing.assert_array_equal(one[0, :, 0], together[row, :, number])


def test_it_is_a_quarter_of_the_bytes() -> None:
    feeds = made(0, 1, 6, 1500, 64)
    parts = remembered(feeds)
    assert sum(part.nbytes for part in parts.values()) < 0.3 * sum(part.nbytes for part in feeds.values())
    assert {parts[f"memory.0.{name}"].dtype for name in ("key", "value")} == {np.dtype(np.int8)}


@pytest.mark.parametrize("frames", [50, 331])
def test_a_graph_that_needs_floats_restores_them(frames: int) -> None:
    """Those that the parts stand for, the keys without what the softmax takes out anyway."""
    feeds = made(2, 2, 3, frames, 16, layers=2)
    query = np.random.default_rng(3).normal(0, 0.25, (2, 3, 5, 16)).astype(np.float32)
    parts = remembered(feeds)
    model = decoder(3, frames, 16, 2)
    restore_memory(model)
    for layer, found in enumerate(run(model, {"query": query} | parts).values()):
        for row in range(2):
            prefix = f"memory.{layer}."
            own = {name.removeprefix(prefix): part[row] for name, part in parts.items() if name.startswith(prefix)}
            floats = restored(own)
            np.testing.assert_allclose(found[row], expected(query[row], **_values(floats)), rtol=1e-4, atol=1e-5)
            key, values = feeds[f"{layer}.key"][row], feeds[f"{layer}.value"][row]
            assert error(floats["key"], key - key.mean(1, keepdims=True)) < 0.01
            assert error(floats["value"], values) < 0.02


def _values(floats: dict[str, Array]) -> dict[str, Array]:
    return {"key": floats["key"], "values": floats["value"]}


@pytest.mark.parametrize("queries", [1, 9])
def test_the_largest_integers_do_not_overflow(queries: int) -> None:
    """Scores of queries that match the keys of one half in every number, and miss those of the other in every one."""
    query = np.full((1, 1, queries, 64), 0.004, np.float32)
    key = np.repeat(np.array([1, -1], np.float32), 20)[None, None, :, None] * np.ones((1, 1, 40, 64), np.float32)
    values = np.ones_like(key)
    values[:, :, 20:, ::2] = -1
    (found,) = attended(query, {"0.key": key, "0.value": values})
    np.testing.assert_allclose(found, expected(query, key, values), atol=0.005)


@pytest.mark.parametrize("zero", ["0.key", "0.value", "query"])
def test_nothing_but_zeros_are_no_trouble(zero: str) -> None:
    """Digital silence may give them: no NaN comes of a scale of zero."""
    feeds = made(4, 1, 2, 40, 8)
    query = np.random.default_rng(5).normal(0, 0.3, (1, 2, 3, 8)).astype(np.float32)
    if zero == "query":
        query[:] = 0
    else:
        feeds[zero][:] = 0
    (found,) = attended(query, feeds)
    reference = expected(query, feeds["0.key"], feeds["0.value"])
    assert np.abs(found - reference).max() < 0.02
