"""Convolutions over time as matrix products: frames side by side, times all taps of the kernel at once.

onnxruntime's convolution adds up in an order that depends on the number of threads, and its matrix products do not. A
product can be quantized, too.
"""

import numpy as np
import onnx_ir as ir

from heedful.export.constants import constant, integers

_SWAP = (0, 2, 1)
_PLAIN = {"group": 1, "dilations": (1,), "auto_pad": "NOTSET"}


def unfold_convolutions(model: ir.Model) -> None:
    """Put products in place of the convolutions (b, c, t) of `model` whose kernel is constant and not dilated."""
    for node in [node for node in model.graph if node.op_type == "Conv" and _is_plain(node)]:
        after = _activation(node)
        last = after or node
        new = _unfolded(model, node)
        if after is not None:
            # it is the same before and after: here the transposition meets the one of the next convolution
            after_new = ir.node("Gelu", new[-1].outputs, dict(after.attributes))
            new.append(after_new)
        new.append(ir.node("Transpose", new[-1].outputs, {"perm": _SWAP}))
        old = [node] if after is None else [node, after]
        ir.convenience.replace_nodes_and_values(model.graph, last, old, new, last.outputs, new[-1].outputs)


def _unfolded(model: ir.Model, node: ir.Node) -> list[ir.Node]:
    """Nodes from the input of `node` to its output, transposed."""
    kernel = node.inputs[1]
    assert kernel is not None
    assert kernel.const_value is not None
    weight = kernel.const_value.numpy()  # (out, c, taps)
    taps = weight.shape[2]
    begin, end = node.attributes["pads"].as_ints()
    (stride,) = node.attributes["strides"].as_ints()
    new: list[ir.Node] = []

    def add(operator: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
        new.append(ir.node(operator, inputs, attributes))
        return new[-1].outputs[0]

    axis = integers(model, [1])
    frames = _frames(node.inputs[0]) or add("Transpose", node.inputs[0], perm=_SWAP)
    padded = add("Pad", frames, integers(model, [begin, end]), None, axis)
    ends = [tap + 1 - taps or np.iinfo(np.int64).max for tap in range(taps)]
    shifted = [
        add("Slice", padded, integers(model, [tap]), integers(model, [ends[tap]]), axis, integers(model, [stride]))
        for tap in range(taps)
    ]
    matrix = np.ascontiguousarray(weight.transpose(2, 1, 0).reshape(-1, len(weight)))
    product = add("MatMul", add("Concat", *shifted, axis=-1), constant(model, f"{kernel.name}.unfolded", matrix))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        add("Add", product, node.inputs[2])
    return new


def _frames(value: ir.Value | None) -> ir.Value | None:
    """(b, t, c), if `value` (b, c, t) is nothing but that transposed."""
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "Transpose" or tuple(producer.attributes["perm"].as_ints()) != _SWAP:
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
