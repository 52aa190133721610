"""Greedy search in one run of a graph: the steps of one text in a loop that onnxruntime goes round by itself.

A step of a recurrent student takes a third of a millisecond, and what Python does around it half of that again. Its
decoder keeps one state, so a text by itself needs no slots either, nor what finds the state of a token among them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from heedful.export.constants import Nodes, constant
from heedful.export.graphs import Graph, flatten, gather, memory_mask, named
from heedful.export.plan import GREEDY
from heedful.export.rank import rank
from heedful.models.cache import KeyValue, State
from heedful.models.seq2seq import Seq2Seq
from heedful.models.text import TokenDecoder

_INT64, _FLOAT, _BOOL = (ir.TensorType(kind) for kind in (ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.BOOL))


class Step(nn.Module):
    """One token more of one text, after the state of the last.

    tokens, positions (1, 1) int64; past and present, a state (1, 1, 1, width) of each layer; memory and frames as of a
    decoder for one input -> logits (1, vocabulary) float32.
    """

    def __init__(self, decoder: TokenDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, tokens: Tensor, positions: Tensor, past: list[Tensor], memory: list[Tensor], frames: Tensor
    ) -> tuple[Tensor, ...]:
        hidden, present, _ = self.decoder(
            tokens,
            positions,
            torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens.device),
            gather(memory, [KeyValue] * len(past)),
            memory_mask(memory, frames),
            cache=gather(past, [State] * len(past)),
        )
        return (self.decoder.logits(hidden.flatten(0, 1)), *flatten(present))


def step_graph(model: Seq2Seq) -> Graph:
    """The graph to trace, of a decoder that is recurrent; `repeat` makes a loop of it."""
    token, length = torch.zeros(1, 1, dtype=torch.int64), torch.full((1,), 5)
    with torch.no_grad():
        memory = named("memory", model.encode(token.expand(1, 5), length))
    state = model.decoder.empty(1, 1)
    past = named("past", state)
    # the exporter takes one tensor that is given twice for one input
    inputs = {"tokens": token, "positions": token.clone(), "past": past, "memory": memory, "frames": length}
    axes: dict[str, Any] = {name: {} for name in inputs}
    axes |= {"past": [{}] * len(past), "memory": [{2: "frames"}] * len(memory)}
    return Graph(GREEDY, Step(model.decoder), inputs, ["logits", *named("present", state)], axes)


def repeat(model: ir.Model, end: int) -> None:
    """Make `model`, a `Step`, in place the loop of steps that writes a text.

    It takes `tokens` (1, 1) int64, what the text begins with; `steps` () int64, how many tokens may follow; and what
    else the step reads, with a shortlist (export/shortlist.py) also `words` (v,) int64, the tokens that it allows. It
    gives `written` (n,) int64, up to and with `end` if that came, and of each its `logit` and `total` (n,) float32,
    log(sum(exp(logits))).
    """
    graph = model.graph
    carried = [value for value in graph.inputs if _is_carried(value)]
    given = [value for value in graph.inputs if not _is_carried(value)]
    words = [_value("words", _INT64, "v")] if any(value.name == "allowed" for value in given) else []
    body = _body(model, carried, words, end)
    first, steps = _value("tokens", _INT64, 1, 1), _value("steps", _INT64)
    states = [_zeros(model, value, np.float32) for value in carried[2:]]
    start = [first, _zeros(model, carried[1], np.int64), *states]
    loop = ir.Node("", "Loop", [steps, None, *start], [ir.AttrGraph("body", body)], num_outputs=len(start) + 3)
    graph.append(loop)
    graph.inputs.clear()
    graph.inputs.extend([first, steps, *words, *given])
    graph.outputs.clear()
    for name, kind, value in zip(
        ("written", "logit", "total"), (_INT64, _FLOAT, _FLOAT), loop.outputs[-3:], strict=True
    ):
        value.name, value.type, value.shape = name, kind, ir.Shape(["n"])
        graph.outputs.append(value)


def _is_carried(value: ir.Value) -> bool:
    return str(value.name).startswith(("tokens", "positions", "past."))


def _body(model: ir.Model, carried: Sequence[ir.Value], words: Sequence[ir.Value], end: int) -> ir.Graph:
    """The nodes of `model` that depend on what is `carried` from step to step, and the choice of a token, as a body."""
    nodes, logits, present = Nodes(model), model.graph.outputs[0], list(model.graph.outputs)[1:]
    one, scalar = nodes.integers(1), constant(model, "greedy.scalar", np.zeros(0, np.int64))
    found = rank(nodes, logits, one)
    token = nodes("Gather", words[0], found.tokens) if words else found.tokens
    over = nodes("Equal", nodes("Reshape", token, scalar), constant(model, "greedy.end", np.asarray(end, np.int64)))
    said = [nodes("Reshape", value, scalar) for value in (token, found.logits, found.total)]
    after = [token, nodes("Add", carried[1], one), *present]
    goes = nodes("Not", over)
    inner = _depending(model.graph, carried)
    model.graph.outputs.clear()
    model.graph.inputs.clear()
    model.graph.remove(inner)
    round_, before = _value("greedy.round", _INT64), _value("greedy.goes", _BOOL)
    for i, value in enumerate(carried):
        value.name = f"greedy.carried.{i}"
    nodes.made = [*inner, *nodes.made]
    return nodes.body("greedy.step", [round_, before, *carried], [goes, *after, *said])


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


def _zeros(model: ir.Model, like: ir.Value, dtype: type[np.generic]) -> ir.Value:
    """What is carried before the first step."""
    assert like.shape is not None
    sizes = [int(size) for size in like.shape]  # type: ignore[arg-type]
    return constant(model, f"greedy.zeros.{'.'.join(map(str, sizes))}.{dtype.__name__}", np.zeros(sizes, dtype))
