"""Self-attention of an encoder whose operator cuts rows into heads itself, in place of four nodes around it.

Results are the same to the last bit. A student's encoder takes a tenth less for a short text, a twentieth for many.
"""

import onnx_ir as ir

from heedful.export.constants import integers
from heedful.export.flash import find_place, heads_and_width


def cut_heads_within(model: ir.Model, pattern: str = "") -> None:
    """Have every self-attention of `model` that has nothing else around it read rows (b, n, width), in place."""
    for node in [node for node in model.graph if node.op_type == "Attention"]:
        place = find_place(node)
        if place is None:
            continue
        heads, width = heads_and_width(node)
        parts = ir.node("Split", [place.source, integers(model, [width] * 3)], {"axis": -1}, num_outputs=3)
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        attributes |= {"q_num_heads": heads, "kv_num_heads": heads}
        attention = ir.node("Attention", [*parts.outputs, *node.inputs[3:]], attributes)
        ir.convenience.replace_nodes_and_values(
            model.graph, place.nodes[-1], place.nodes, [parts, attention], [place.output], [attention.outputs[0]]
        )
