"""Self-attention over rows that are not cut into heads before: by a kernel that needs less memory, or by fewer nodes.

onnxruntime's flash kernel never holds the scores of all pairs. The standard operator's is as fast, but stores queries x
keys x heads scores: 72 MB for Whisper base, where the flash kernel needs little more than its output. Source of the
algorithm: Dao et al. 2022, arXiv 2205.14135.
"""

from typing import Any, NamedTuple

import onnx_ir as ir

from heedful.export.constants import MICROSOFT, integers

_SWAP_HEADS = (0, 2, 1, 3)


class _Place(NamedTuple):
    """Where a self-attention stands: its input (b, n, 3 * h * d), its output (b, n, h * d), the nodes between, h, d."""

    source: ir.Value
    output: ir.Value
    nodes: list[ir.Node]
    heads: int
    head_dim: int


def use_flash(model: ir.Model) -> None:
    """Put `MultiHeadAttention` in place of every self-attention without a mask in `model`, with its transposes."""
    for node in [node for node in model.graph if node.op_type == "Attention"]:
        place = _place(node) if not any(node.inputs[3:]) else None
        if place is None:
            continue
        # without a scale both operators take 1 / sqrt(d)
        scale = node.attributes["scale"].as_float() if "scale" in node.attributes else place.head_dim**-0.5
        attributes = {"num_heads": place.heads, "scale": scale}
        _attend_to_rows(model, place, "MultiHeadAttention", attributes, domain=MICROSOFT)
        model.opset_imports.setdefault(MICROSOFT, 1)


def cut_heads_within(model: ir.Model) -> None:
    """Have every other self-attention of `model` whose surroundings allow it cut rows into heads itself: the same bits.

    A student's encoder takes a tenth less for a short text, a twentieth less for many.
    """
    for node in [node for node in model.graph if node.op_type == "Attention"]:
        place = _place(node)
        if place is not None:
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            attributes |= {"q_num_heads": place.heads, "kv_num_heads": place.heads}
            _attend_to_rows(model, place, "Attention", attributes, *node.inputs[3:])


def _attend_to_rows(
    model: ir.Model, place: _Place, operator: str, attributes: dict[str, Any], *rest: ir.Value | None, domain: str = ""
) -> None:
    """Put `operator`, given queries, keys and values (b, n, h * d) and the `rest`, in `place`."""
    sizes = integers(model, [place.heads * place.head_dim] * 3)
    parts = ir.node("Split", [place.source, sizes], {"axis": -1}, num_outputs=3)
    if place.source.shape is not None:
        for part in parts.outputs:
            part.shape = ir.Shape([*place.source.shape[:-1], place.heads * place.head_dim])
            part.type = place.source.type
    attention = ir.node(operator, [*parts.outputs, *rest], attributes, domain=domain)
    ir.convenience.replace_nodes_and_values(
        model.graph, place.nodes[-1], place.nodes, [parts, attention], [place.output], [attention.outputs[0]]
    )


def _place(attention: ir.Node) -> _Place | None:
    """The surroundings of `attention` if they are those that `SelfAttention` becomes, without a cache."""
    split = attention.inputs[0].producer() if attention.inputs[0] is not None else None
    if split is None or split.op_type != "Split" or list(split.outputs) != list(attention.inputs[:3]):
        return None
    # keys and values that are wanted elsewhere too, as those of a prefix are
    if any(value.is_graph_output() or len(value.uses()) != 1 for value in split.outputs):
        return None
    before = _chain_back(split, ["Transpose", "Reshape"])
    after = _chain_forward(attention, ["Transpose", "Reshape"])
    if before is None or after is None or before[-1].inputs[0] is None:
        return None
    if any(tuple(node.attributes["perm"].as_ints()) != _SWAP_HEADS for node in (before[0], after[0])):
        return None
    shape = split.outputs[0].shape
    assert shape is not None
    heads, head_dim = (int(shape[axis]) for axis in (1, 3))  # type: ignore[arg-type]
    nodes = [*reversed(before), split, attention, *after]
    return _Place(before[-1].inputs[0], after[-1].outputs[0], nodes, heads, head_dim)


def _chain_back(node: ir.Node, types: list[str]) -> list[ir.Node] | None:
    """The producers of the first inputs, one behind the other, if they are of `types` and used for nothing else."""
    found: list[ir.Node] = []
    for op_type in types:
        value = node.inputs[0]
        producer = None if value is None else value.producer()
        if producer is None or value is None or producer.op_type != op_type or len(value.uses()) != 1:
            return None
        found.append(node := producer)
    return found


def _chain_forward(node: ir.Node, types: list[str]) -> list[ir.Node] | None:
    """The only users of the first outputs, one after the other, if they are of `types`."""
    found: list[ir.Node] = []
    for op_type in types:
        uses = list(node.outputs[0].uses())
        if len(uses) != 1 or uses[0].node.op_type != op_type:
            return None
        found.append(node := uses[0].node)
    return found
