"""A graph's module to an ONNX model: torch's exporter, with our one operator mapped to the standard one."""

import ast
import logging
import warnings
from collections.abc import Callable
from typing import Any

import onnx_ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript import values
from torch import nn

from heedful.export.graphs import Graph

OPSET = 24
# it warns of every operator of torchvision, which nothing here needs
logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
_op = values.Opset("", OPSET)


def _scatter_slots(past: Any, new: Any, at: Any) -> Any:
    return _op.TensorScatter(past, new, at, axis=2, mode="linear")


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.heedful.scatter_slots.default: _scatter_slots}


def trace(graph: Graph) -> onnx_ir.Model:
    """The ONNX model of `graph` at opset 24, weights in memory, axes named as in `graph.axes`."""
    module: nn.Module = graph.module.eval()
    with torch.no_grad(), warnings.catch_warnings():
        # axes that are tied to one another share one of their names, which it says for every one of them
        warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)
        # torch.export copies its own tree specs, and copying one warns about how it is made
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        program = torch.onnx.export(
            module,
            args=graph.example,
            input_names=graph.input_names,
            output_names=graph.outputs,
            dynamic_shapes=tuple(graph.axes.values()),
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    assert program is not None
    _name_weights(program.model)
    # the exporter notes stack traces, with paths of the machine it ran on
    ClearMetadataAndDocStringPass()(program.model)
    return program.model


def _name_weights(model: onnx_ir.Model) -> None:
    """Name transposed weights after the module that they belong to: the exporter calls them val_1, val_2, ..."""
    initializers = model.graph.initializers
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        modules = [scope for scope in scopes if scope and "." in scope]
        if weight is None or weight.name is None or weight.name not in initializers or not modules:
            continue
        # the last scope is the operation, the one before it its module
        name = f"{modules[-1]}.weight"
        if weight.name.startswith("val_") and name not in initializers:
            initializers.pop(weight.name)
            weight.name = name
            model.graph.register_initializer(weight)
