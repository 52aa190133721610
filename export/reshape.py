"""Changes of shape with less work: what only regroups the numbers of a tensor, in the order they are in."""

import onnx_ir as ir

from heedful.export.constants import integers

_REGROUPING = {"Reshape", "Squeeze", "Unsqueeze", "Identity"}


def state_shapes(model: ir.Model) -> None:
    """State the shapes that `Reshape` makes, in place, where `model` computes them from sizes that stay in place."""
    for node in model.graph:
        source, shape = node.inputs[:2] if node.op_type == "Reshape" else (None, None)
        before, after = (None if value is None else value.shape for value in (source, node.outputs[0]))
        if shape is None or shape.const_value is not None or before is None or after is None:
            continue
        sizes = [_stated(size, before[axis] if axis < len(before) else None) for axis, size in enumerate(after)]
        if None not in sizes:
            node.replace_input_with(1, integers(model, [size for size in sizes if size is not None]))
            node.attributes.pop("allowzero", None)


def _stated(size: int | ir.SymbolicDim, before: int | ir.SymbolicDim | None) -> int | None:
    """A number for `size` in a shape: 0 says that it is that of the axis `before`, None that there is none."""
    if isinstance(size, int):
        return size or None
    return 0 if size.value is not None and size == before else None


def regroup_once(model: ir.Model) -> None:
    """Make every chain of such changes in `model`, in place, one `Reshape`, or nothing where it changes nothing.

    A transpose is one of them where no two of the axes that it exchanges are longer than 1, as those of the heads and
    of a single token.
    """
    for node in [node for node in model.graph if _regroups(node)]:
        output, source = node.outputs[0], node.inputs[0]
        assert source is not None
        while (before := source.producer()) is not None and _regroups(before) and before.inputs[0] is not None:
            source = before.inputs[0]
        sizes = _sizes(output)
        assert sizes is not None
        if _sizes(source) == sizes:
            ir.convenience.replace_all_uses_with(output, source, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
        elif node.op_type != "Reshape" or source is not node.inputs[0]:
            shape = integers(model, sizes)
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], [made := ir.node("Reshape", [source, shape])], [output], made.outputs
            )
    for node in reversed(model.graph):
        if node.op_type in _REGROUPING and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            model.graph.remove(node, safe=True)


def _regroups(node: ir.Node) -> bool:
    sizes = _sizes(node.outputs[0]) if node.op_type in {*_REGROUPING, "Transpose"} else None
    if sizes is None or node.op_type != "Transpose":
        return sizes is not None
    long = [axis for axis, size in zip(node.attributes["perm"].as_ints(), sizes, strict=True) if size != 1]
    return long == sorted(long)


def _sizes(value: ir.Value) -> list[int] | None:
    """The sizes of all axes of `value`, None if one is not known."""
    shape = value.shape
    if shape is None or not all(isinstance(size, int) for size in shape):
        return None
    return [int(size) for size in shape]  # type: ignore[arg-type]
