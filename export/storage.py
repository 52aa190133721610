"""The weights of all graphs of a bundle in one file, each different tensor once, laid out to be mapped into memory."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from heedful.export.constants import WHOLE

# smaller tensors stay in the graph, where onnxruntime can fold them
_SMALLEST = 1024
# mapping starts at pages
_ALIGNMENT = 4096


def store(models: dict[str, ir.Model], folder: Path, weights: str = "weights.bin") -> list[str]:
    """Write each model as `NAME.onnx` and their weights as `weights` into `folder`; names of the files written.

    What no output of a model needs is left out, and taken from it. Parts of a constant (`part_of`) lie within it.
    """
    for model in models.values():
        RemoveUnusedNodesPass()(model)
    offsets: dict[bytes, int] = {}
    places: dict[ir.Value, int] = {}
    with (folder / weights).open("wb") as file:
        for value in _large(models.values()):
            whole, before = value.meta.get(WHOLE, (value, 0))
            if whole not in places:
                places[whole] = _place(file, whole.const_value.tobytes(), offsets)
            tensor = value.const_value
            assert tensor is not None
            value.const_value = ir.ExternalTensor(
                weights,
                places[whole] + before,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.numpy().shape),
                name=value.name or "",
                base_dir=folder,
            )
    for name, model in models.items():
        ir.save(model, folder / f"{name}.onnx")
    return [weights, *(f"{name}.onnx" for name in models)]


def _place(file: BinaryIO, data: bytes, offsets: dict[bytes, int]) -> int:
    """Where `file` has `data`: at its end, from now on, unless it has them at one of the `offsets`, by their digest."""
    digest = hashlib.sha256(data).digest()
    if digest not in offsets:
        file.write(b"\0" * (-file.tell() % _ALIGNMENT))
        offsets[digest] = file.tell()
        file.write(data)
    return offsets[digest]


def _large(models: Iterable[ir.Model]) -> Iterable[ir.Value]:
    for model in models:
        for value in model.graph.initializers.values():
            if value.const_value is not None and value.const_value.nbytes >= _SMALLEST:
                yield value
