"""One decoder session over the rows whose caches it reads and writes in place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from heedful.runtime.engine.buffers import Buffer
from heedful.runtime.engine.device import Device
from heedful.runtime.engine.rows import Rows, Shape

FEW = 8
"""New tokens up to which a decoder's graph may attend to each on its own (export/fold.py)."""

# a graph runs no further than what is asked of it
_AS_FAR_AS_ASKED = ort.RunOptions()
_AS_FAR_AS_ASKED.only_execute_path_to_fetches = True
# the default, said aloud: where nothing is said, onnxruntime's Python raises and catches an error in every run, 30 us
_AS_FAR_AS_ASKED.add_run_config_entry("gpu_graph_id", "0")


@dataclass(frozen=True, slots=True)
class Feed:
    """New tokens of one input: tokens and positions (n,), the first slot they take, the slots each may see (n, used)
    and which of the n tokens' logits are wanted: of each the `best` largest, where the graph ranks them, or all if that
    is 0. Before that the slots `kept` (at,) are moved to the front, if given.
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    at: int
    mask: NDArray[np.bool_]
    select: NDArray[np.int64]
    kept: NDArray[np.intp] | None = None
    best: int = 0


class Best(NamedTuple):
    """The largest logits (m, k), float32, in falling order, their tokens (m, k), int64, and log(sum(exp(logits))) over
    the whole vocabulary (m,), float32.
    """

    logits: NDArray[np.float32]
    tokens: NDArray[np.int64]
    total: NDArray[np.float32]

    def part(self, start: int, end: int) -> "Best":
        return Best(self.logits[start:end], self.tokens[start:end], self.total[start:end])


Scores = NDArray[np.float32] | Best
"""What is known of the next token: logits (m, vocabulary), or the best of them."""


class Decoder:
    """Runs decoder.onnx over `rows` inputs at most. Neither caches nor memory are copied in a step."""

    def __init__(self, session: ort.InferenceSession, shape: Shape, device: Device, rows: int) -> None:
        self.session = session
        self.shape = shape
        self.device = device
        self.rows = rows
        self.buffers = Rows(shape, device, rows)
        self.binding = session.io_binding()
        names = {each.name for each in session.get_inputs()}
        self.ranks, self.measures = "best" in names, "frames" in names
        self.outputs: tuple[str, ...] = ()  # bound beside the caches
        self.held: list[NDArray[Any]] = []  # bound inputs are borrowed, not copied

    @property
    def choices(self) -> int:
        """How many tokens there are to choose from."""
        return self.shape.vocabulary

    @property
    def memory(self) -> dict[str, Buffer]:
        """What rows attend to: keys and values of each layer."""
        return self.buffers.memory

    def step(self, feeds: Mapping[int, Feed]) -> dict[int, Scores]:
        """Write the new tokens of some rows into their caches; the other rows stay as they are.

        Returns the wanted logits (len(select), vocabulary), float32, of each row fed, or the best of them. One new
        token, a few and many are fed apart: onnxruntime adds up their scores in different orders, so that padding a row
        to the width of its neighbours would change its last bits.
        """
        kinds: dict[tuple[bool, bool, bool], dict[int, Feed]] = {}
        for row, feed in feeds.items():
            new = len(feed.tokens)
            kinds.setdefault((new > 1, new > FEW, feed.best > 0 and self.ranks), {})[row] = feed
        return {row: scores for kind in kinds.values() for row, scores in self._step(kind).items()}

    def _step(self, feeds: Mapping[int, Feed]) -> dict[int, Scores]:
        width = max(len(feed.tokens) for feed in feeds.values())
        rows = self.buffers
        for row, feed in feeds.items():
            if feed.kept is not None:
                rows.keep(row, feed.kept)
            rows.used[row] = feed.at + len(feed.tokens)
        rows.reserve(max(rows.used) + width)
        places = rows.gather(list(feeds))
        count = len(places)
        inputs = {
            "tokens": np.zeros((count, width), np.int64),
            "positions": np.zeros((count, width), np.int64),
            "at": np.full(count, rows.capacity - width, np.int64),
            "mask": np.zeros((count, width, rows.capacity), np.bool_),
        }
        tokens, positions, at, mask = inputs.values()
        frames = np.ones(count, np.int64)
        # padding must see a slot, or its softmax is NaN and poisons the slot it writes
        mask[:, :, -1] = True
        select, ends = [], [0]
        for row, feed in feeds.items():
            at_row, new = rows.place[row] - places.start, len(feed.tokens)
            tokens[at_row, :new], positions[at_row, :new], at[at_row] = feed.tokens, feed.positions, feed.at
            mask[at_row, :new] = False
            mask[at_row, :new, : feed.mask.shape[1]] = feed.mask
            frames[at_row] = rows.frames[row]
            select.append(at_row * width + feed.select)
            ends.append(ends[-1] + len(feed.select))
        if self.measures:
            inputs["frames"] = frames
        best = min(max(feed.best for feed in feeds.values()), self.choices) if self.ranks else 0
        inputs |= {"select": np.concatenate(select), **self._extra(feeds)}
        found = self._found(self._run(places, inputs, best))
        cut = found.part if isinstance(found, Best) else lambda start, end: found[start:end]
        return {row: cut(*ends[i : i + 2]) for i, row in enumerate(feeds)}

    def _extra(self, feeds: Mapping[int, Feed]) -> dict[str, NDArray[Any]]:
        """What else the graph takes for a step of `feeds`."""
        return {}

    def _found(self, scores: Scores) -> Scores:
        """What the graph found, in tokens of the vocabulary."""
        return scores

    def release(self, row: int) -> None:
        """What the caches hold of `row` is no longer needed."""
        self.buffers.used[row] = 0

    def _run(self, places: range, inputs: dict[str, NDArray[Any]], best: int) -> Scores:
        count = len(inputs["select"])
        outputs: dict[str, NDArray[Any]]
        if best:
            outputs = {
                "best_logits": np.empty((count, best), np.float32),
                "best_tokens": np.empty((count, best), np.int64),
                "total": np.empty(count, np.float32),
            }
        else:
            outputs = {"logits": np.empty((count, self.shape.vocabulary), np.float32)}
        if self.ranks:
            inputs["best"] = np.asarray([max(best, 1)], np.int64)
        self._bind(places, tuple(outputs))
        self.held = [*inputs.values(), *outputs.values()]
        for name, value in inputs.items():
            self.binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        for name, value in outputs.items():
            self.binding.bind_output(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        self.session.run_with_iobinding(self.binding, _AS_FAR_AS_ASKED)
        return Best(*outputs.values()) if best else outputs["logits"]

    def _bind(self, places: range, outputs: tuple[str, ...]) -> None:
        if self.outputs != outputs:
            # an output that is not asked for this time would be written to where it was bound last
            self.binding.clear_binding_outputs()
            self.buffers.bound = range(0)
            self.outputs = outputs
        self.buffers.bind(self.binding, places)
