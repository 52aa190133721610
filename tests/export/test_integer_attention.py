"""Attention of integers beside the same in float64, and beside the node that it takes the place of."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from heedful.export.constants import MICROSOFT
from heedful.export.integer_attention import quantize_attention
from heedful.runtime.engine.device import session_options

Array = NDArray[Any]
NAMES = ("query", "key", "value")


def attention(heads: int, scale: float, frames: int = 8, width: int = 16) -> ir.Model:
    """A graph of one `MultiHeadAttention` called encoder.attention, of any number of inputs."""
    kind = ir.TensorType(ir.DataType.FLOAT)
    inputs = [ir.Value(name=name, shape=ir.Shape(["b", frames, width]), type=kind) for name in NAMES]
    attributes = {"num_heads": heads, "scale": scale}
    node = ir.node("MultiHeadAttention", inputs, attributes, domain=MICROSOFT, name="encoder.attention")
    output = node.outputs[0]
    output.name, output.type, output.shape = "output", kind, ir.Shape(["b", frames, width])
    return ir.Model(ir.Graph(inputs, [output], nodes=[node], opset_imports={"": 24, MICROSOFT: 1}), ir_version=11)


def run(model: ir.Model, inputs: tuple[Array, Array, Array]) -> Array:
    content = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(content, session_options(), providers=["CPUExecutionProvider"])
    found: Array = session.run(None, dict(zip(NAMES, inputs, strict=True)))[0]
    return found


def expected(heads: int, scale: float, inputs: tuple[Array, Array, Array]) -> Array:
    """softmax(Q K^T * scale) V in float64."""
    batch, length, width = inputs[0].shape
    query, key, value = (
        each.astype(np.float64).reshape(batch, length, heads, -1).transpose(0, 2, 1, 3) for each in inputs
    )
    scores = query @ key.transpose(0, 1, 3, 2) * scale
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    found: Array = (weights @ value).transpose(0, 2, 1, 3).reshape(batch, length, width)
    return found


def integers(heads: int, scale: float, inputs: tuple[Array, Array, Array]) -> Array:
    """What attention in integers finds."""
    model = attention(heads, scale, *inputs[0].shape[1:])
    quantize_attention(model)
    return run(model, inputs)


def error(found: Array, reference: Array) -> float:
    return float(np.sqrt(((found - reference) ** 2).mean() / (reference**2).mean()))


def drawn(seed: int, batch: int, length: int, width: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    query, key, value = (rng.standard_normal((batch, length, width)).astype(np.float32) for _ in NAMES)
    return query, key, value


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 3),
    length=st.integers(1, 70),
    heads=st.integers(1, 4),
    dim=st.sampled_from([8, 16, 24, 64]),
    offset=st.sampled_from([0.0, 30.0]),
)
def test_it_is_attention_whatever_the_sizes(
    seed: int, batch: int, length: int, heads: int, dim: int, offset: float
) -> None:
    query, key, value = drawn(seed, batch, length, heads * dim)
    # all keys lie far to one side, which changes no weight
    inputs = query, key + np.float32(offset), value
    scale = dim**-0.5
    assert error(integers(heads, scale, inputs), expected(heads, scale, inputs)) < 0.03


def test_weights_that_many_keys_share_are_not_rounded_to_nothing() -> None:
    """2,000 keys nearly alike: each has a weight of 0.0005, which is less than a unit of 1 / 255."""
    query, key, value = drawn(1, 1, 2000, 16)
    inputs = query, key * np.float32(0.01), value + np.float32(1)
    assert error(integers(1, 0.25, inputs), expected(1, 0.25, inputs)) < 0.01


def test_heads_and_channels_of_very_different_size_keep_their_precision() -> None:
    query, key, value = drawn(2, 1, 50, 32)
    small = np.repeat([1.0, 1e-3], 16).astype(np.float32)
    inputs = query * small, key, value * small
    found, reference = integers(2, 0.25, inputs), expected(2, 0.25, inputs)
    for head in (slice(0, 16), slice(16, 32)):
        assert error(found[..., head], reference[..., head]) < 0.03


def test_the_largest_integers_do_not_overflow() -> None:
    """Scores of queries that match the keys of one half in every number, and miss those of the other in every one."""
    query = np.ones((1, 40, 64), np.float32)
    key = np.repeat(np.array([1, -1], np.float32), 20)[None, :, None] * query
    value = np.ones_like(query)
    value[:, 20:, ::2] = -1
    inputs = query, key, value
    np.testing.assert_allclose(integers(1, 0.004, inputs), expected(1, 0.004, inputs), atol=0.005)


def test_nothing_but_zeros_gives_zeros() -> None:
    zeros = np.zeros((1, 5, 16), np.float32)
    assert np.array_equal(integers(2, 0.5, (zeros, zeros, zeros)), zeros)


def test_the_scale_counts() -> None:
    inputs = drawn(3, 1, 20, 16)
    sharp = expected(1, 1.0, inputs)
    assert error(integers(1, 1.0, inputs), sharp) < 0.03
    assert error(integers(1, 0.1, inputs), sharp) > 0.3


def test_it_computes_what_onnxruntimes_own_node_computes() -> None:
    inputs = drawn(4, 2, 33, 48)
    assert error(integers(3, 0.25, inputs), run(attention(3, 0.25, 33, 48), inputs)) < 0.03


@pytest.mark.parametrize(("pattern", "left"), [("", 0), ("encoder", 0), ("decoder", 1)])
def test_only_what_the_pattern_names_is_rewritten(pattern: str, left: int) -> None:
    model = attention(2, 0.5)
    quantize_attention(model, pattern)
    assert sum(node.op_type == "MultiHeadAttention" for node in model.graph) == left


def test_attention_with_a_mask_is_left_alone() -> None:
    model = attention(2, 0.5)
    (node,) = model.graph
    node.resize_inputs(5)
    mask = ir.Value(name="mask", shape=ir.Shape(["b", "n"]), type=ir.TensorType(ir.DataType.INT32))
    model.graph.inputs.append(mask)
    node.replace_input_with(4, mask)
    quantize_attention(model)
    assert [node.op_type for node in model.graph] == ["MultiHeadAttention"]
