"""Logits whose product with a constant matrix is two products, so that text need not be cut out of all tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from heedful.export.constants import Nodes, constant, part_of
from heedful.export.rank import Part, columns, product_of


@dataclass(frozen=True)
class Parts:
    """Logits (m, n) before and behind a `bound`. What comes first is `text` of the product that they come from, what
    comes behind is the `rest`.
    """

    logits: ir.Value
    bound: int
    text: ir.Value
    rest: ir.Value

    def before(self, nodes: Nodes, part: Part) -> ir.Value:
        """Those before the bound, of `part` of the rows."""
        return columns(nodes, self.logits, self.text, self.bound, part)

    def behind(self, nodes: Nodes) -> ir.Value:
        """Those from the bound on."""
        assert self.logits.shape is not None
        return columns(nodes, self.logits, self.rest, int(self.logits.shape[1]) - self.bound)  # type: ignore[arg-type]

    def few(self, nodes: Nodes, tokens: Sequence[int]) -> ir.Value:
        """Those of few `tokens` before the bound."""
        chosen = constant(nodes.model, "few.tokens", np.asarray(tokens, np.int64))
        return columns(nodes, self.logits, nodes("Gather", self.text, chosen, axis=1), len(tokens))

    def whole(self, nodes: Nodes) -> ir.Value:
        """All of them."""
        return nodes("Concat", self.before(nodes, lambda value: value), self.behind(nodes), axis=1)


def cut(model: ir.Model, logits: ir.Value, bound: int) -> Parts:
    """Put two products into `model` in place of the one that its `logits` (m, n) come from. Of what is constant and has
    n rows each has its own, which are stored where the whole is.
    """
    node = product_of(logits).producer()
    assert node is not None
    assert logits.shape is not None
    size = int(logits.shape[1])  # type: ignore[arg-type]
    made = []
    for name, start, stop in (("text", 0, bound), ("rest", bound, size)):
        inputs = [
            part_of(model, value, name, start, stop) if value is not None and _has_rows(value, size) else value
            for value in node.inputs
        ]
        made.append(ir.node(node.op_type, inputs, dict(node.attributes), domain=node.domain))
    model.graph.insert_after(node, made)
    return Parts(logits, bound, *(each.outputs[0] for each in made))


def _has_rows(value: ir.Value, size: int) -> bool:
    """Whether `value` is constant and has so many rows."""
    return value.const_value is not None and value.const_value.shape[:1] == (size,)
