"""Cross-attention over a memory of 8-bit integers: a quarter of the bytes that every step of a decoder reads anew.

The encoder hands the decoder, in place of keys and values in float32, these parts of every layer, for f frames cut into
c blocks of w:

- key (b, h, 1, c, d, w) int8, with key_scale (b, h, 1, f), what a unit stands for in each frame. The mean of the keys
  over the frames is taken away first: the softmax takes it out again, and smaller numbers are left to round. Source:
  Zhang et al. 2024, SageAttention, arXiv 2410.02367.
- key_offset (b, h, 1, f): what the scores have too much, since queries are rounded to 1 ... 127 around 64. Only
  unsigned numbers without a zero point go through the kernel that reads a matrix where it lies, for one row at a time;
  any other is copied first, which takes longer than the product. In blocks it reads one stretch of memory.
- value (b, h, f, d) int8, with value_scale (b, h, 1, d).

Queries have a scale each, and so have the weights of each query, whose largest is 255. Queries and values have 7 bits,
so that sums are exact on every CPU (export/integer_attention.py).
"""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from heedful.export.constants import constant
from heedful.export.fold import attention_to_memory
from heedful.export.integer_nodes import IntegerNodes, divisor

# a block of keys should fit in the cache nearest to the core, and its columns in whole vectors
_WIDEST = 320
_PARTS = ("key", "key_scale", "key_offset", "value", "value_scale")
# queries that a scale is for: however many there are
_ALL = 1 << 16
# queries are rounded to as many units around it as it is, less one
_ZERO = 64


def quantize_remembered(model: ir.Model, pattern: str = "") -> None:
    """Make the encoder `model` hand over its keys and values in 8 bits, in place."""
    outputs = {str(value.name): value for value in model.graph.outputs}
    for layer in range(_layers(outputs)):
        new = IntegerNodes(model)
        key, value = (outputs[f"memory.{layer}.{part}"] for part in ("key", "value"))
        value_scale = new.unit(new.largest(value, 2), 64)
        made = (*_keys(new, key), new.of_columns(value, value_scale), value_scale)
        found = dict(zip(_PARTS, made, strict=True))
        model.graph.extend(new.made)
        for old in (key, value):
            old.name = f"{old.name}.float"
            model.graph.outputs.remove(old)
        for part, output in found.items():
            kind = ir.DataType.FLOAT if "_" in part else ir.DataType.INT8
            output.name, output.type, output.shape = f"memory.{layer}.{part}", ir.TensorType(kind), _shape(part, key)
            model.graph.outputs.append(output)


def _keys(new: IntegerNodes, key: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    _, heads, frames, width = _sizes(key)
    centred = new.centred(key, frames)
    scale = new.unit(new.largest(centred, -1), 127)  # (b, h, f, 1)
    rounded = new.of_rows(centred, width, scale)
    blocked = new("Reshape", rounded, new.integers(0, heads, 1, -1, _block(frames), width))
    keys = new("Transpose", blocked, perm=[0, 1, 2, 3, 5, 4])
    row = new.integers(0, heads, 1, frames)
    scales = new("Reshape", scale, row)
    ones = constant(new.model, f"memory.ones.{width}", np.ones((1, width), np.uint8))
    sums = new("Cast", new("Reshape", new("MatMulInteger", ones, keys), row), to=ir.DataType.FLOAT)
    return keys, scales, new("Mul", new("Mul", sums, new.number(float(_ZERO), 4)), scales)


def attend_in_integers(model: ir.Model, pattern: str = "") -> None:
    """Make the decoder `model` attend to what `quantize_remembered` hands over, in place."""
    zeros: ir.Value | None = None
    for node in attention_to_memory(model):
        query, key, value = node.inputs[:3]
        assert query is not None
        assert key is not None
        assert value is not None
        assert node.attributes["scale"].as_float() == 1.0, "export/fold.py takes the scales into the queries"
        new = IntegerNodes(model)
        scale = new.unit(new.largest(query, -1), _ZERO - 1, least=0)  # (b, h, n, 1)
        if zeros is None:
            zeros = new("Expand", new.unsigned(_ZERO), new("Shape", scale))
        rounded = new.of_rows(query, _sizes(query)[3], scale, zeros, ir.DataType.UINT8)
        result = _attention(new, rounded, scale, _take_in(model, key, value))
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], new.made, [node.outputs[0]], [result])


def _attention(new: IntegerNodes, query: ir.Value, scale: ir.Value, memory: Mapping[str, ir.Value]) -> ir.Value:
    """softmax(Q K^T) V of `query` (b, h, n, d) in units of `scale` (b, h, n, 1): (b, h, n, d)."""
    _, _, frames, width = _sizes(memory["value"])
    alone = new("Reshape", query, new.integers(0, 0, 0, 1, 1, width))
    product = new("Reshape", new("MatMulInteger", alone, memory["key"]), new.integers(0, 0, 0, frames))
    real = new("DequantizeLinear", product, memory["key_scale"], axis=2, block_size=_ALL)
    weights = new("Softmax", new("Mul", new("Sub", real, memory["key_offset"]), scale), axis=-1)  # (b, h, n, f)
    unit = new.unit(new("ReduceMax", weights, new.integers(-1), keepdims=1), 255, least=0)
    shares = new.of_rows(weights, frames, unit, kind=ir.DataType.UINT8)
    mixed = new("MatMulInteger", shares, memory["value"])
    return new("Mul", new("DequantizeLinear", mixed, memory["value_scale"], axis=2, block_size=_ALL), unit)


def restore_memory(model: ir.Model, pattern: str = "") -> None:
    """Make `model`, which attends to keys and values in float32, read them from what `quantize_remembered` hands over,
    in place.
    """
    inputs = {str(value.name): value for value in model.graph.inputs}
    first = model.graph[0]
    for layer in range(_layers(inputs)):
        key, value = (inputs[f"memory.{layer}.{part}"] for part in ("key", "value"))
        _, heads, frames, width = _sizes(key)
        new = IntegerNodes(model)
        memory = _take_in(model, key, value)
        codes = new("Transpose", new("Cast", memory["key"], to=ir.DataType.FLOAT), perm=[0, 1, 2, 3, 5, 4])
        scales = new("Reshape", memory["key_scale"], new.integers(0, heads, frames, 1))
        keys = new("Mul", new("Reshape", codes, new.integers(0, heads, frames, width)), scales)
        values = new("Mul", new("Cast", memory["value"], to=ir.DataType.FLOAT), memory["value_scale"])
        ir.convenience.replace_all_uses_with(key, keys)
        ir.convenience.replace_all_uses_with(value, values)
        model.graph.insert_before(first, new.made)


def _take_in(model: ir.Model, key: ir.Value, value: ir.Value) -> dict[str, ir.Value]:
    """The parts of a layer's memory, as inputs of `model` in place of `key` and `value`."""
    prefix = str(key.name).removesuffix("key")
    made = {}
    for part in _PARTS:
        kind = ir.DataType.FLOAT if "_" in part else ir.DataType.INT8
        made[part] = ir.Value(name=f"{prefix}{part}", shape=_shape(part, key), type=ir.TensorType(kind))
    for old in (key, value):
        old.name = f"{old.name}.float"
        model.graph.inputs.remove(old)
    model.graph.inputs.extend(made.values())
    return made


def restored(memory: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float32]]:
    """`key`, less its mean over the frames, and `value`, (h, f, d) each, of one input's parts of a layer's memory."""
    parts = {name: np.asarray(part, np.float32) for name, part in memory.items()}
    codes = parts["key"].swapaxes(-1, -2)  # (h, 1, c, w, d)
    keys = codes.reshape(len(codes), -1, codes.shape[-1]) * parts["key_scale"].swapaxes(-1, -2)
    return {"key": keys, "value": parts["value"] * parts["value_scale"]}


def _layers(names: Iterable[str]) -> int:
    """How many layers have keys and values among `names`."""
    return sum(name.startswith("memory.") for name in names) // 2


def _shape(part: str, key: ir.Value) -> ir.Shape:
    batch, heads, frames, width = _sizes(key)
    block = _block(frames)
    shapes = {
        "key": [1, frames // block, width, block],
        "key_scale": [1, frames],
        "key_offset": [1, frames],
        "value": [frames, width],
        "value_scale": [1, width],
    }
    return ir.Shape([batch, heads, *shapes[part]])


def _block(frames: int) -> int:
    """The largest divisor of `frames` that is no larger than a block may be."""
    return divisor(frames, _WIDEST)


def _sizes(value: ir.Value) -> tuple[int | ir.SymbolicDim, int, int, int]:
    assert value.shape is not None
    batch, heads, frames, width = value.shape
    return batch, heads, frames, width  # type: ignore[return-value]
