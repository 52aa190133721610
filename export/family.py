"""What the exporter asks of a family: an architecture, the checkpoints that hold it, and what its runtime must know."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from tokenizers import Tokenizer

from heedful.export.checkpoint import Checkpoint
from heedful.export.graphs import Graph, Model, Reading
from heedful.export.plan import Plan
from heedful.export.shortlist import Shortlist
from heedful.models.cache import KeyValue
from heedful.runtime.bundle import Bundle
from heedful.runtime.engine.decoder import Decoder
from heedful.runtime.engine.search import Hypothesis


class Opened(Protocol):
    """A bundle opened by its runtime."""

    @property
    def decoders(self) -> Mapping[str, Callable[[int], Decoder]]: ...
    def encode(self, decoder: Decoder, inputs: dict[int, Any]) -> None: ...
    def align(
        self, decoder: Decoder, row: int, header: Sequence[int], text: Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...


@dataclass(frozen=True)
class Subject:
    """A bundle to be compared with its model, and on what.

    `inputs` are what `opened.encode` takes, `memory` what the model made of them, as far as `lengths` if given. Texts
    are begun with each of `prompts`, and with `header` where one is enough; they never `end`. `alone`, of bundles that
    have a graph for it, is what greedy search finds in one run, given an input and how many tokens at most.
    """

    model: Model
    opened: Opened
    inputs: Sequence[Any]
    memory: list[KeyValue]
    lengths: list[int] | None
    prompts: Sequence[list[int]]
    header: list[int]
    end: int
    reading: Reading
    alone: Callable[[Any, int], Hypothesis | None] | None = None


@dataclass(frozen=True)
class Family:
    """One architecture.

    `recognises` says whether a checkpoint holds it; `load` builds the model, float32; `tokenizers` are the files of a
    bundle that hold its tokenizers, by name, and `texts` further files; `describe` is what the runtime must know, and
    `section` where bundle.json has it; `graphs` are what is to be traced, `subject` what is to be checked of the
    bundle. `plan` is how int8 bundles are quantized. `shortlist` is the checkpoint's, if it has one. `rank` has a
    decoder hand over its best logits by rules of the family's own; many rows one at a time, if it is told so.
    """

    name: str
    task: str
    section: str
    plan: Plan
    recognises: Callable[[Checkpoint], bool]
    load: Callable[[Checkpoint], Any]
    tokenizers: Callable[[Checkpoint], dict[str, Tokenizer]]
    describe: Callable[[Checkpoint, Any, dict[str, Tokenizer]], dict[str, Any]]
    graphs: Callable[[Any, dict[str, Any]], list[Graph]]
    subject: Callable[[Any, Bundle], Subject]
    shortlist: Callable[[Checkpoint, Any], Shortlist | None] = lambda checkpoint, model: None
    texts: Callable[[dict[str, Tokenizer]], dict[str, str]] = lambda tokenizers: {}
    rank: Callable[[ir.Model, dict[str, Any], bool], None] | None = None
