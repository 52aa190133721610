"""What rewrites of a graph share: constants made on first use, nodes made in order, onnxruntime's own operators."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

MICROSOFT = "com.microsoft"
WHOLE = "whole"
"""What is noted with a constant that is a part of another: which, and how many bytes of that come before it."""


def constant(model: ir.Model, name: str, array: NDArray[np.generic]) -> ir.Value:
    """The initializer called `name`, made on first use."""
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.from_numpy(array.dtype)))
    value.const_value = ir.tensor(array, name=name)
    model.graph.register_initializer(value)
    return value


def part_of(model: ir.Model, whole: ir.Value, name: str, start: int, stop: int) -> ir.Value:
    """Rows of the constant `whole` as a constant that has that `name` beside its own, made on first use. Where the
    whole is stored they are stored with it.
    """
    assert whole.const_value is not None
    rows = whole.const_value.numpy()[start:stop]
    part = constant(model, f"{whole.name}.{name}", rows)
    part.meta[WHOLE] = whole, start * rows[:1].nbytes
    return part


def integers(model: ir.Model, numbers: list[int]) -> ir.Value:
    """The constant vector of `numbers`, int64."""
    return constant(model, f"integers.{'.'.join(map(str, numbers))}", np.asarray(numbers, np.int64))


class Nodes:
    """Nodes made for `model`, in order, to be put into its graph."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.made: list[ir.Node] = []

    def __call__(
        self, operator: str, *inputs: ir.Value | None, domain: str = "", **attributes: int | list[int]
    ) -> ir.Value:
        """The output of a new node."""
        self.made.append(ir.node(operator, inputs, attributes, domain=domain))
        return self.made[-1].outputs[0]

    def body(self, name: str, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Graph:
        """The nodes as the body called `name` of another; their names must not be those of the graph around it."""
        for i, node in enumerate(self.made):
            for j, value in enumerate(node.outputs):
                value.name = f"{name}.{i}.{j}"
        return ir.Graph(inputs, outputs, nodes=self.made, name=name)

    def integers(self, *numbers: int) -> ir.Value:
        """The constant vector of `numbers`, int64."""
        return integers(self.model, list(numbers))

    def number(self, number: float, axes: int = 0) -> ir.Value:
        """The constant `number`, float32, of so many axes. It should have as many as what it meets: with fewer,
        onnxruntime goes through values whose last axis is 1 one by one, which takes fifty times as long.
        """
        return constant(self.model, f"number.{number!r}.{axes}", np.full((1,) * axes, number, np.float32))
