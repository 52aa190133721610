"""A decoder that hands over only what search looks at: the largest logits and the sum that makes them probabilities.

A vocabulary of 60,000 logits for each of 32 rows is 8 MB a step that need not leave the graph.
"""

import onnx_ir as ir

from heedful.export.constants import integers


def rank_logits(model: ir.Model) -> None:
    """Give the decoder `model`, in place, an input `best` (1,) int64, how many logits of each row are wanted.

    Its outputs, beside `logits` (m, vocabulary): `best_logits` (m, best) float32 in falling order, their `best_tokens`
    (m, best) int64, and `total` (m,) float32, log(sum(exp(logits))).
    """
    logits = next(value for value in model.graph.outputs if value.name == "logits")
    best = ir.Value(name="best", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    model.graph.inputs.append(best)
    last = integers(model, [-1])
    largest = ir.node("TopK", [logits, best], {"axis": -1}, num_outputs=2)
    highest = ir.node("ReduceMax", [logits, last], {"keepdims": 1})
    shifted = ir.node("Sub", [logits, highest.outputs[0]])
    exponential = ir.node("Exp", shifted.outputs)
    summed = ir.node("ReduceSum", [exponential.outputs[0], last], {"keepdims": 1})
    logarithm = ir.node("Log", summed.outputs)
    raised = ir.node("Add", [logarithm.outputs[0], highest.outputs[0]])
    total = ir.node("Squeeze", [raised.outputs[0], last])
    nodes = [largest, highest, shifted, exponential, summed, logarithm, raised, total]
    model.graph.extend(nodes)
    rows = logits.shape[0] if logits.shape is not None else None
    outputs = [
        ("best_logits", largest.outputs[0], ir.DataType.FLOAT, [rows, "best"]),
        ("best_tokens", largest.outputs[1], ir.DataType.INT64, [rows, "best"]),
        ("total", total.outputs[0], ir.DataType.FLOAT, [rows]),
    ]
    for name, value, kind, shape in outputs:
        value.name, value.type, value.shape = name, ir.TensorType(kind), ir.Shape(shape)
        model.graph.outputs.append(value)
