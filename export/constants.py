"""What rewrites of a graph share: constants made on first use, and onnxruntime's own operators."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

MICROSOFT = "com.microsoft"


def constant(model: ir.Model, name: str, array: NDArray[np.generic]) -> ir.Value:
    """The initializer called `name`, made on first use."""
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.from_numpy(array.dtype)))
    value.const_value = ir.tensor(array, name=name)
    model.graph.register_initializer(value)
    return value


def integers(model: ir.Model, numbers: list[int]) -> ir.Value:
    """The constant vector of `numbers`, int64."""
    return constant(model, f"integers.{'.'.join(map(str, numbers))}", np.asarray(numbers, np.int64))
