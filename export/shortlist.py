"""Lexical shortlists: the tokens that a translation may use, given the source, so that logits are few.

Source: Schwenk et al. 2007 for the idea, Junczys-Dowmunt et al. 2018, arXiv 1805.12096, for its use in Marian, whose
binary file of one (`lex.*.s2t.bin`) is read here: six u64 (magic, checksum, frequent tokens, best for a word, offsets,
entries), then u64 offsets, one more than there are words, and u32 target tokens, word after word.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from heedful.export.constants import Nodes
from heedful.export.plan import GREEDY
from heedful.runtime.errors import CheckpointError, ExportError

_HEAD = struct.Struct("<6Q")
_MAGIC = 0xF11A48D5013417F5
FILE = "shortlist.npz"
SHORT = {"decoder": "shortlist", GREEDY: "greedy-shortlist"}
"""Graphs that keep to the shortlist, by those that do not."""
_MATRIX = 3  # among the inputs of QGemm


@dataclass(frozen=True)
class Shortlist:
    """The first `frequent` tokens are always allowed; word w allows targets[offsets[w]:offsets[w + 1]]."""

    frequent: int
    offsets: NDArray[np.int64]
    targets: NDArray[np.int32]

    def save(self, path: Path) -> None:
        np.savez_compressed(path, frequent=self.frequent, offsets=self.offsets, targets=self.targets)


def read_shortlist(path: Path, vocabulary: int) -> Shortlist:
    """The shortlist in Marian's binary file `path`, for a source and target of `vocabulary` tokens.

    Raises CheckpointError when it is cut off, malformed, or for another vocabulary.
    """
    data = path.read_bytes()
    if len(data) < _HEAD.size or _HEAD.unpack_from(data)[0] != _MAGIC:
        raise CheckpointError(f"{path} is no shortlist of Marian's: remove it, or download it again")
    _, _, frequent, _, count, size = _HEAD.unpack_from(data)
    if len(data) != _HEAD.size + 8 * count + 4 * size or count != vocabulary + 1:
        raise CheckpointError(f"{path} is cut off or for another vocabulary: download it again")
    offsets = np.frombuffer(data, "<u8", count, _HEAD.size).astype(np.int64)
    targets = np.frombuffer(data, "<u4", size, _HEAD.size + 8 * count).astype(np.int32)
    if offsets[0] != 0 or offsets[-1] != size or (np.diff(offsets) < 0).any():
        raise CheckpointError(f"{path} is damaged: its offsets do not rise from 0 to {size}; download it again")
    if frequent > vocabulary or (size and not 0 <= targets.min() <= targets.max() < vocabulary):
        raise CheckpointError(f"{path} names tokens beyond the vocabulary of {vocabulary}: it is of another model")
    return Shortlist(int(frequent), offsets, targets)


def shorten(model: ir.Model) -> tuple[ir.Model, dict[str, str]]:
    """A copy of the decoder `model` whose output matrix, with its scales and bias, are inputs of as many rows as tokens
    are allowed; the names of those inputs, and of the constants of `model` that they are rows of.

    A further input, `allowed` (m, v) float32, is added to the logits: 0 for those of the v tokens that a row may use,
    minus infinity for the others. The vocabulary is the last axis of the logits, and the first of the constants.
    """
    short = ir.serde.deserialize_model(ir.serde.serialize_model(model))
    logits = next(value for value in short.graph.outputs if value.name == "logits")
    assert logits.shape is not None
    sources: dict[str, str] = {}
    for node, position, value in _by_token(logits):
        name = f"output.{len(sources)}"
        sources[name] = str(value.name)
        assert value.shape is not None
        given = ir.Value(name=name, shape=ir.Shape(["v", *value.shape[1:]]), type=value.type)
        short.graph.inputs.append(given)
        node.replace_input_with(position, given)
    _mask(short, logits)
    return short, sources


def keep_to_words(model: ir.Model) -> ir.Model:
    """A copy of `model`, a text's graph, with an input `words` (v,) int64, the tokens whose logits (1, v) it computes.

    The product is one with a matrix that is not turned: for a single row that is four times as fast.
    """
    short = model.clone()
    logits = next(value for value in short.graph.outputs if value.name == "logits")
    words = ir.Value(name="words", shape=ir.Shape(["v"]), type=ir.TensorType(ir.DataType.INT64))
    short.graph.inputs.append(words)
    nodes = Nodes(short)
    for node, position, value in _by_token(logits):
        kept = nodes("Gather", value, words)
        if node.op_type == "QGemm" and value is node.inputs[_MATRIX]:
            kept = nodes("Transpose", kept, perm=[1, 0])
            node.attributes["transB"] = ir.AttrInt64("transB", 0)
        node.replace_input_with(position, kept)
    short.graph.insert_before(short.graph[0], nodes.made)
    logits.shape = ir.Shape([1, "v"])
    return short


def _by_token(logits: ir.Value) -> list[tuple[ir.Node, int, ir.Value]]:
    """The constants with a row for each token of the vocabulary that make `logits`, their nodes and places there."""
    assert logits.shape is not None
    vocabulary = logits.shape[1]
    product = logits.producer()
    while product is not None and product.op_type not in {"QGemm", "Gemm"}:
        product = product.inputs[0].producer() if product.inputs[0] is not None else None
    if product is None:
        raise ExportError("the decoder's logits come from no product that a shortlist could shorten")
    return [
        (node, position, value)
        for node in (product, *(use.node for use in product.outputs[0].uses() if use.node.op_type == "Add"))
        for position, value in enumerate(node.inputs)
        if value is not None and value.const_value is not None and value.const_value.shape[0:1] == (vocabulary,)
    ]


def _mask(model: ir.Model, logits: ir.Value) -> None:
    """Add `allowed` to the logits."""
    producer = logits.producer()
    assert producer is not None
    assert logits.shape is not None
    shape = ir.Shape([logits.shape[0], "v"])
    allowed = ir.Value(name="allowed", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.inputs.append(allowed)
    masked = ir.node("Add", [logits, allowed])
    model.graph.insert_after(producer, masked)
    output = masked.outputs[0]
    output.type, output.shape, logits.shape = logits.type, shape, shape
    logits.name, output.name = "logits.all", "logits"
    model.graph.outputs[model.graph.outputs.index(logits)] = output
