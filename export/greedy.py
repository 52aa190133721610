"""A text by itself, from its tokens to what greedy search writes about it, in one run of a graph.

A step of a recurrent student takes a quarter of a millisecond, and what Python does around it half of that again: here
onnxruntime goes round in a loop by itself. The decoder keeps one state, so a text by itself needs no slots either, nor
what finds the state of a token among them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heedful.export.constants import Nodes, constant
from heedful.export.graphs import Graph, flatten, memory_mask, named
from heedful.export.plan import GREEDY
from heedful.export.rank import log_total, top
from heedful.export.reshape import regroup_once
from heedful.models.cache import KeyValue, State
from heedful.models.seq2seq import Seq2Seq
from heedful.runtime.engine.rows import BUCKET

_INT64, _FLOAT, _BOOL = (ir.TensorType(kind) for kind in (ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.BOOL))


class Text(nn.Module):
    """A text, and one token more of what is written about it, after the state of the last.

    source (1, k) int64, of which the first lengths (1,) are real; tokens, positions (1, 1) int64; past and present, a
    state (1, 1, width) of each layer -> logits (1, vocabulary) float32.
    """

    def __init__(self, model: Seq2Seq) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, source: Tensor, lengths: Tensor, tokens: Tensor, positions: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        memory = [KeyValue(*map(_filled_up, layer)) for layer in self.model.encode(source, lengths)]
        hidden, present, _ = self.model.decoder(
            tokens,
            positions,
            torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens.device),
            memory,
            memory_mask([memory[0].key], lengths),
            cache=[State(state[None]) for state in past],
        )
        return (self.model.decoder.logits(hidden.flatten(0, 1)), *(state.squeeze(0) for state in flatten(present)))


def _filled_up(part: Tensor) -> Tensor:
    """As many frames as a decoder's buffers have: the order in which attention adds up its scores depends on that."""
    return F.pad(part, (0, 0, 0, -part.shape[2] % BUCKET["cpu"]))


def text_graph(model: Seq2Seq) -> Graph:
    """The graph to trace, of a decoder that is recurrent; `repeat` makes a loop of it."""
    token = torch.zeros(1, 1, dtype=torch.int64)
    state = {name: part[0] for name, part in named("past", model.decoder.empty(1, 1)).items()}
    # the exporter takes one tensor that is given twice for one input
    inputs = {
        "source": token.expand(1, 5).clone(),
        "lengths": torch.full((1,), 5),
        "tokens": token,
        "positions": token.clone(),
        "past": state,
    }
    axes: dict[str, Any] = {name: {} for name in inputs}
    axes |= {"source": {1: "frames"}, "past": [{}] * len(state)}
    outputs = ["logits", *(name.replace("past", "present") for name in state)]
    return Graph(GREEDY, Text(model), inputs, outputs, axes)


def repeat(model: ir.Model, end: int) -> None:
    """Make of `model`, a `Text`, in place the loop of steps that writes.

    It takes `source` and `lengths`; `tokens` (1, 1) int64, what the text begins with; `steps` () int64, how many may
    follow; and, of few words (export/shortlist.py), `words` (v,) int64, those that it may use. It gives `written` (n,)
    int64, up to and with `end` if that came, and of each its `logit` and `total` (n,) float32, log(sum(exp(logits))).
    """
    regroup_once(model)
    graph = model.graph
    inputs = {str(value.name): value for value in graph.inputs}
    carried = [value for name, value in inputs.items() if name == "tokens" or name.startswith("past.")]
    body = _body(model, carried, inputs, end)
    outer = Nodes(model)
    first, steps = _value("tokens", _INT64, 1, 1), _value("steps", _INT64)
    start = [first, *(_zeros(model, value) for value in carried[1:])]
    loop = ir.Node("", "Loop", [steps, None, *start], [ir.AttrGraph("body", body)], num_outputs=len(start) + 2)
    outer.made.append(loop)
    tokens, logits = loop.outputs[-2:]
    flat = outer("Reshape", logits, outer.integers(0, -1))
    highest = outer("ReduceMax", flat, outer.integers(-1), keepdims=1)
    last = outer.integers(-1)
    found = {
        "written": outer("Reshape", tokens, last),
        "logit": outer("Reshape", highest, last),
        "total": outer("Reshape", log_total(outer, flat, highest), last),
    }
    graph.extend(outer.made)
    given = [value for name, value in inputs.items() if value not in carried and name != "positions"]
    graph.inputs.clear()
    graph.inputs.extend([*given, first, steps])
    graph.outputs.clear()
    for name, value in found.items():
        value.name, value.type, value.shape = name, _INT64 if name == "written" else _FLOAT, ir.Shape(["n"])
        graph.outputs.append(value)


def _body(model: ir.Model, carried: Sequence[ir.Value], inputs: dict[str, ir.Value], end: int) -> ir.Graph:
    """The nodes of `model` that depend on what is `carried` from step to step, and the choice of a token, as a body."""
    before, after = Nodes(model), Nodes(model)
    round_, goes = _value("greedy.round", _INT64), _value("greedy.goes", _BOOL)
    position = before("Reshape", round_, before.integers(1, 1))
    ir.convenience.replace_all_uses_with(inputs["positions"], position)
    logits, *present = model.graph.outputs
    token = top(after, logits, after.integers(1))[1]
    if "words" in inputs:
        token = after("Gather", inputs["words"], token)
    over = after("Equal", token, constant(model, "greedy.end", np.asarray(end, np.int64)))
    stays = after("Not", after("Reshape", over, constant(model, "greedy.scalar", np.zeros(0, np.int64))))
    inner = _depending(model.graph, [*carried, position])
    model.graph.outputs.clear()
    model.graph.inputs.clear()
    model.graph.remove(inner)
    for i, value in enumerate(carried):
        value.name = f"greedy.carried.{i}"
    before.made += [*inner, *after.made]
    return before.body("greedy.step", [round_, goes, *carried], [stays, token, *present, token, logits])


def _depending(graph: ir.Graph, values: Sequence[ir.Value]) -> list[ir.Node]:
    """The nodes of `graph`, in order, that `values` have to do with."""
    reached, nodes = set(values), []
    for node in graph:
        if reached & set(node.inputs):
            nodes.append(node)
            reached |= set(node.outputs)
    return nodes


def _value(name: str, kind: ir.TensorType, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, type=kind, shape=ir.Shape(shape))


def _zeros(model: ir.Model, like: ir.Value) -> ir.Value:
    """What is carried before the first step."""
    assert like.shape is not None
    sizes = [int(size) for size in like.shape]  # type: ignore[arg-type]
    return constant(model, f"greedy.zeros.{'.'.join(map(str, sizes))}", np.zeros(sizes, np.float32))
