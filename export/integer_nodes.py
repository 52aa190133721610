"""Nodes that make integers of floats: what products (export/integer.py) and attention in integers have in common."""

import numpy as np
import onnx_ir as ir

from heedful.export.constants import Nodes, constant

# what is zero throughout is divided too
_LEAST = 1e-12


class IntegerNodes(Nodes):
    """Those that quantize values."""

    def apart(self, value: ir.Value, axis: int, count: int) -> list[ir.Value]:
        """`value` cut into `count` parts of size 1 along `axis`."""
        self.made.append(ir.node("Split", [value, self.integers(*[1] * count)], {"axis": axis}, num_outputs=count))
        return list(self.made[-1].outputs)

    def unsigned(self, number: int) -> ir.Value:
        return constant(self.model, f"unsigned.{number}", np.asarray(number, np.uint8))

    def centred(self, value: ir.Value, frames: int) -> ir.Value:
        """`value` (..., frames, width) less its mean over the frames."""
        # a product, because the operator for a mean over frames takes several times as long
        shares = constant(self.model, f"mean.{frames}", np.full((1, frames), 1 / frames, np.float32))
        return self("Sub", value, self("MatMul", shares, value))

    def largest(self, value: ir.Value, *axes: int) -> ir.Value:
        """The largest size along `axes`, which stay."""
        return self("ReduceMax", self("Abs", value), self.integers(*axes), keepdims=1)

    def unit(self, largest: ir.Value, most: int, *, least: float = _LEAST, axes: int = 4) -> ir.Value:
        """What an integer stands for, if the `largest` number, of so many axes, is to be `most` of them: `least` or
        more, if that is not 0.
        """
        unit = self("Mul", largest, self.number(1 / most, axes))
        return self("Max", unit, self.number(least, axes)) if least else unit

    def of_rows(
        self,
        value: ir.Value,
        width: int,
        unit: ir.Value,
        zero: ir.Value | None = None,
        kind: ir.DataType = ir.DataType.INT8,
    ) -> ir.Value:
        """`value` (..., width) in units of `unit` (..., 1), around `zero` (..., 1)."""
        return self("QuantizeLinear", value, unit, zero, axis=-1, block_size=width, output_dtype=kind)

    def of_columns(self, value: ir.Value, unit: ir.Value) -> ir.Value:
        """`value` in units of `unit`, which is repeated along its first axes: int8."""
        return self("QuantizeLinear", self("Div", value, unit), self.number(1.0), output_dtype=ir.DataType.INT8)


def divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is no larger than `most`."""
    return max(count for count in range(1, most + 1) if number % count == 0)
