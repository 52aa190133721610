"""Convolutions over time as matrix products: frames side by side, times all taps of the kernel at once.

onnxruntime's convolution adds up in an order that depends on the number of threads, and its matrix products do not. A
product can be quantized, too.
"""

import numpy as np
import onnx_ir as ir

from heedful.export.constants import Nodes, constant

_SWAP = [0, 2, 1]
_PLAIN = {"group": 1, "dilations": (1,), "auto_pad": "NOTSET"}


def unfold_convolutions(model: ir.Model) -> None:
    """Put products in place of the convolutions (b, c, t) of `model` whose kernel is constant and not dilated."""
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
    taps = weight.shape[2]
    (stride,) = node.attributes["strides"].as_ints()
    time, step = new.integers(1), new.integers(stride)
    padding = new.integers(*node.attributes["pads"].as_ints())
    padded = new("Pad", _frames(source) or new("Transpose", source, perm=_SWAP), padding, None, time)
    ends = [tap + 1 - taps or np.iinfo(np.int64).max for tap in range(taps)]
    shifted = [new("Slice", padded, new.integers(tap), new.integers(end), time, step) for tap, end in enumerate(ends)]
    matrix = np.ascontiguousarray(weight.transpose(2, 1, 0).reshape(-1, len(weight)))
    product = new("MatMul", new("Concat", *shifted, axis=-1), constant(new.model, f"{kernel.name}.unfolded", matrix))
    return new("Add", product, *bias) if bias else product


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
    return _PLAIN | stated == _PLAIN


def _value(node: ir.Node, name: str) -> object:
    value = node.attributes[name].value
    return tuple(value) if isinstance(value, list | tuple) else value
