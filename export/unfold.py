"""Convolutions over time as matrix products: frames side by side, times taps of the kernel.

onnxruntime's convolution adds up in an order that depends on the number of threads, and its matrix products do not. A
product can be quantized, too.
"""

import numpy as np
import onnx_ir as ir

from heedful.export.constants import Nodes, constant

_SWAP = [0, 2, 1]
_PLAIN = {"group": 1, "dilations": (1,), "auto_pad": "NOTSET"}


def unfold_convolutions(model: ir.Model) -> None:
    """Put products in place of the convolutions (b, c, t) of `model` whose kernel is constant and not dilated and whose
    `t` is known.
    """
    for node in [node for node in model.graph if node.op_type == "Conv" and _is_plain(node)]:
        new = Nodes(model)
        output = _unfolded(new, node)
        old = [node]
        if (activation := _activation(node)) is not None:
            # before the transposition, which then meets that of the next convolution
            output = new("Gelu", output, **{name: each.value for name, each in activation.attributes.items()})
            old.append(activation)
        output = new("Transpose", output, perm=_SWAP)
        ir.convenience.replace_nodes_and_values(model.graph, old[-1], old, new.made, old[-1].outputs, [output])


def _unfolded(new: Nodes, node: ir.Node) -> ir.Value:
    """What `node` computes, transposed: (b, t, out)."""
    source, kernel, *bias = node.inputs
    assert kernel is not None
    assert kernel.const_value is not None
    weight = kernel.const_value.numpy()  # (out, c, taps)
    frames = _frames(source) or new("Transpose", source, perm=_SWAP)
    stride, before, after = (number for name in ("strides", "pads") for number in node.attributes[name].as_ints())
    out, channels, taps = weight.shape
    length = _length(node)
    assert length is not None
    count = (length + before + after - taps) // stride + 1
    seen, matrices = [], []
    # frames that taps of one stride see lie side by side as they are
    for tap in range(0, taps, stride):
        matrix = np.ascontiguousarray(weight[:, :, tap : tap + stride].transpose(2, 1, 0).reshape(-1, out))
        ends = (before - tap, count * stride - length - (before - tap))
        seen.append(_seen(new, frames, ends, (count, stride * channels), len(matrix)))
        matrices.append(matrix)
    if taps * channels <= out:
        # what is wider after the product than before it is put together before
        seen, matrices = [new("Concat", *seen, axis=-1)], [np.concatenate(matrices)]
    product, *others = (
        new("MatMul", each, constant(new.model, f"{kernel.name}.unfolded.{i}", matrix))
        for i, (each, matrix) in enumerate(zip(seen, matrices, strict=True))
    )
    for each in (*others, *bias):
        product = new("Add", product, each)
    return product


def _seen(new: Nodes, frames: ir.Value, ends: tuple[int, int], size: tuple[int, int], width: int) -> ir.Value:
    """`frames` (b, t, c) with so many of zeros before and behind, or less so many, as (b, *size): the first `width`
    columns.
    """
    within = new("Pad", frames, new.integers(*ends), None, new.integers(1))
    steps = new("Reshape", within, new.integers(0, *size))
    if width == size[1]:
        return steps
    return new("Slice", steps, new.integers(0), new.integers(width), new.integers(2))


def _length(node: ir.Node) -> int | None:
    """How many frames `node` sees, if that is known."""
    source = node.inputs[0]
    length = None if source is None or source.shape is None else source.shape[2]
    return length if isinstance(length, int) else None


def _frames(value: ir.Value | None) -> ir.Value | None:
    """(b, t, c), if `value` (b, c, t) is nothing but that transposed."""
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "Transpose" or list(producer.attributes["perm"].as_ints()) != _SWAP:
        return None
    return producer.inputs[0]


def _activation(node: ir.Node) -> ir.Node | None:
    """The GELU that alone follows `node`."""
    uses = list(node.outputs[0].uses())
    return uses[0].node if len(uses) == 1 and uses[0].node.op_type == "Gelu" else None


def _is_plain(node: ir.Node) -> bool:
    kernel = node.inputs[1]
    if kernel is None or kernel.const_value is None or len(kernel.const_value.shape) != 3:
        return False
    stated = {name: _value(node, name) for name in _PLAIN if name in node.attributes}
    return _PLAIN | stated == _PLAIN and _length(node) is not None


def _value(node: ir.Node, name: str) -> object:
    value = node.attributes[name].value
    return tuple(value) if isinstance(value, list | tuple) else value
