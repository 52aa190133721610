"""Logits, a product with a constant matrix and what is done to it row by row: made once more of some rows, or in parts.

A branch of a graph that makes them anew of the rows it looks at keeps what it writes in a core's cache. In parts, text
need not be cut out of the logits of all tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from heedful.export.constants import Nodes, part_of

# what is done row by row to the product
_ROWWISE = {"Add", "Cast", "Mul"}

Part = Callable[[ir.Value], ir.Value]
"""Some rows of a value that has something for each row."""


def whole(value: ir.Value) -> ir.Value:
    """All rows of `value`."""
    return value


def columns_of(logits: ir.Value) -> int:
    """How many logits there are of each row."""
    assert logits.shape is not None
    return int(logits.shape[1])  # type: ignore[arg-type]


def product_of(logits: ir.Value) -> tuple[ir.Value, Sequence[ir.Node]]:
    """The product that `logits` come from, and the nodes between, in order."""
    between: list[ir.Node] = []
    value = logits
    while (node := value.producer()) is not None and node.op_type in _ROWWISE and node.inputs[0] is not None:
        between.insert(0, node)
        value = node.inputs[0]
    return value, between


def again(nodes: Nodes, logits: ir.Value, part: Part = whole) -> ir.Value:
    """`logits` made once more, of `part` of the product and of whatever else has something for each row."""
    product, between = product_of(logits)
    made = {product: part(product)}
    for node in between:
        inputs = [value for value in node.inputs if value is not None]
        given = [made[value] if value in made else value if value.is_initializer() else part(value) for value in inputs]
        attributes = {name: each.value for name, each in node.attributes.items()}
        made[node.outputs[0]] = nodes(node.op_type, *given, **attributes)
    # the product says nothing of its shape and type
    made[logits].shape, made[logits].type = logits.shape, logits.type
    return made[logits]


@dataclass(frozen=True)
class Parts:
    """`logits` (m, n) before and behind a `bound`. What comes first is `text` of the product that they come from, what
    comes behind is the `rest`.
    """

    logits: ir.Value
    bound: int
    text: ir.Value
    rest: ir.Value

    def before(self, nodes: Nodes, part: Part = whole) -> ir.Value:
        """Those before the bound, of `part` of the rows."""
        return self._columns(nodes, self.text, self.bound, part)

    def behind(self, nodes: Nodes) -> ir.Value:
        """Those from the bound on."""
        return self._columns(nodes, self.rest, columns_of(self.logits) - self.bound)

    def few(self, nodes: Nodes, tokens: Sequence[int]) -> ir.Value:
        """Those of few `tokens` before the bound."""
        return self._columns(nodes, nodes("Gather", self.text, nodes.integers(*tokens), axis=1), len(tokens))

    def everything(self, nodes: Nodes) -> ir.Value:
        """All of them."""
        return nodes("Concat", self.before(nodes), self.behind(nodes), axis=1)

    def _columns(self, nodes: Nodes, some: ir.Value, count: int, part: Part = whole) -> ir.Value:
        """Of `part` of the logits the `count` columns that `some` is of the product."""
        product, between = product_of(self.logits)
        assert not any(value.is_initializer() for node in between for value in node.inputs if value is not None)
        made = again(nodes, self.logits, lambda value: part(some if value is product else value))
        assert self.logits.shape is not None
        made.shape = ir.Shape([self.logits.shape[0], count])
        return made


def cut(model: ir.Model, logits: ir.Value, bound: int) -> Parts:
    """Put two products into `model` beside the one that its `logits` (m, n) come from. Of what is constant and has n
    rows each has its own, which are stored where the whole is.
    """
    node = product_of(logits)[0].producer()
    assert node is not None
    size = columns_of(logits)
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
