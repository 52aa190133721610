"""One decoder session over the rows whose caches it reads and writes in place."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike, NDArray

from heedful.runtime.engine.buffers import Buffer
from heedful.runtime.engine.device import RUN, Device
from heedful.runtime.engine.inputs import Inputs
from heedful.runtime.engine.rows import Rows, Shape

FEW = 8
"""New tokens up to which a decoder's graph may attend to each on its own (export/fold.py)."""


class Wanted(NamedTuple):
    """How many of each text's largest logits a search asks for, all of them if 0, and, where a graph may apply rules,
    what it must know of each text to do so.
    """

    best: int = 0
    rules: Sequence[Sequence[int]] = ()


class Feed(NamedTuple):
    """New tokens of one input: tokens and positions (n,), the first slot they take, the slots each may see (n, used)
    and of which of the n tokens the logits, or as far as the graph ranks them what is `wanted` of them. Before that the
    slots `kept` (at,) are moved to the front, if given.
    """

    tokens: Sequence[int]
    positions: Sequence[int]
    at: int
    mask: NDArray[np.bool_]
    select: Sequence[int]
    kept: NDArray[np.intp] | None = None
    wanted: Wanted = Wanted()


class Best(NamedTuple):
    """The largest logits (m, k), in falling order, their tokens (m, k), log(sum(exp(logits))) over the whole vocabulary
    (m,) and over what the rules allow that the graph applies: so few that they are plain numbers.
    """

    logits: Sequence[Sequence[float]]
    tokens: Sequence[Sequence[int]]
    total: Sequence[float]
    allowed: Sequence[float]

    def part(self, rows: slice) -> "Best":
        """What is said of these rows."""
        return Best(self.logits[rows], self.tokens[rows], self.total[rows], self.allowed[rows])

    def copy(self) -> "Best":
        """The same, which nobody writes to."""
        return self


class All(NamedTuple):
    """All logits (m, vocabulary) and log(sum(exp(logits))) (m,), float32."""

    logits: NDArray[np.float32]
    total: NDArray[np.float32]

    def part(self, rows: slice) -> "All":
        """What is said of these rows, where it lies."""
        return All(self.logits[rows], self.total[rows])

    def copy(self) -> "All":
        """The same in memory of its own."""
        return All(self.logits.copy(), self.total.copy())


Scores = All | Best
"""What is known of the next token."""


class _Kind(NamedTuple):
    """What must be alike in rows that are stepped together: whether new tokens are `several`, whether they are `many`,
    more than `FEW`, and whether only the best logits are wanted.
    """

    several: bool
    many: bool
    ranked: bool


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
        self.ranks, self.rules = "best" in names, "rule" in names
        self.measures = "frames" in names
        self.inputs = Inputs(self.binding, names, device)
        self.outputs: dict[str, NDArray[Any]] = {}  # bound beside the caches
        self._room: dict[_Kind, dict[str, NDArray[Any]]] = {}  # what was bound last for steps of each kind

    @property
    def choices(self) -> int:
        """How many tokens there are to choose from."""
        return self.shape.vocabulary

    @property
    def spare(self) -> int:
        """How many slots of a row nobody may see any more before the others are moved together."""
        return self.buffers.bucket

    @property
    def memory(self) -> dict[str, Buffer]:
        """What rows attend to: keys and values of each layer."""
        return self.buffers.memory

    def step(self, feeds: Mapping[int, Feed]) -> dict[int, Scores]:
        """Write the new tokens of some rows into their caches; the other rows stay as they are.

        Returns the wanted logits (len(select), vocabulary) of each row fed, or the best of them, in memory that later
        steps may write to. One new token, a few and many are fed apart: onnxruntime adds up their scores in different
        orders, so that padding a row to the width of its neighbours would change its last bits.
        """
        kinds: dict[_Kind, dict[int, Feed]] = {}
        for row, feed in feeds.items():
            new, wanted = len(feed.tokens), feed.wanted
            ranked = wanted.best > 0 and self.ranks and (len(wanted.rules) > 0 or not self.rules)
            kinds.setdefault(_Kind(new > 1, new > FEW, ranked), {})[row] = feed
        return {row: scores for kind, alike in kinds.items() for row, scores in self._step(kind, alike).items()}

    def _step(self, kind: _Kind, feeds: Mapping[int, Feed]) -> dict[int, Scores]:
        width = max(len(feed.tokens) for feed in feeds.values())
        rows = self.buffers
        for row, feed in feeds.items():
            if feed.kept is not None:
                rows.keep(row, feed.kept)
            rows.used[row] = feed.at + len(feed.tokens)
        rows.reserve(max(rows.used) + width)
        places = rows.gather(list(feeds))
        ends = self._write(feeds, places, width)
        best = min(max(feed.wanted.best for feed in feeds.values()), self.choices) if kind.ranked else 0
        found = self._found(self._run(kind, places, ends[-1], best))
        return {row: found.part(slice(*ends[i : i + 2])) for i, row in enumerate(feeds)}

    def _write(self, feeds: Mapping[int, Feed], places: range, width: int) -> list[int]:
        """Write the inputs of a step; returns where the wanted logits of each row begin, and the end of the last."""
        rows, count, new = self.buffers, len(places), self.inputs.new
        fed = [(rows.place[row] - places.start, feed) for row, feed in feeds.items()]
        each = [place for place, _ in fed]
        fresh = [place * width + i for place, feed in fed for i in range(len(feed.tokens))]
        new("tokens", (count, width)).reshape(-1)[fresh] = [token for _, feed in fed for token in feed.tokens]
        new("positions", (count, width)).reshape(-1)[fresh] = [place for _, feed in fed for place in feed.positions]
        new("at", (count,), rows.capacity - width)[each] = [feed.at for _, feed in fed]
        new("frames", (count,), 1)[each] = [rows.frames[row] for row in feeds]
        ends = [0, *accumulate(len(feed.select) for _, feed in fed)]
        new("select", (ends[-1],))[:] = [place * width + i for place, feed in fed for i in feed.select]
        if self.rules:
            rule = new("rule", (ends[-1], 2))
            if rules := [each for _, feed in fed for each in feed.wanted.rules]:
                rule[:] = rules
        mask = new("mask", (count, width, rows.capacity), dtype=np.bool_)
        # padding must see a slot, or its softmax is NaN and poisons the slot it writes
        mask[:, :, -1] = padded = len(fresh) < count * width
        for place, feed in fed:
            if padded:
                mask[place, : len(feed.tokens), -1] = False
            mask[place, : len(feed.tokens), : feed.mask.shape[1]] = feed.mask
        for name, array in self._extra(feeds).items():
            self.inputs.give(name, array)
        return ends

    def _extra(self, feeds: Mapping[int, Feed]) -> dict[str, NDArray[Any]]:
        """What else the graph takes for a step of `feeds`."""
        return {}

    def _found(self, scores: Scores) -> Scores:
        """What the graph found, in tokens of the vocabulary."""
        return scores

    def release(self, row: int) -> None:
        """What the caches hold of `row` is no longer needed."""
        self.buffers.used[row] = 0

    def _run(self, kind: _Kind, places: range, count: int, best: int) -> Scores:
        self.inputs.new("best", (1,), best)
        outputs = self._prepare(kind, count, best)
        self.buffers.bind(self.binding, places)
        self.inputs.bind()
        self.session.run_with_iobinding(self.binding, RUN)
        if not best:
            return All(outputs["logits"], outputs["total"])
        found = {name: array.tolist() for name, array in outputs.items()}
        return Best(found["best_logits"], found["best_tokens"], found["total"], found.get("allowed", found["total"]))

    def _prepare(self, kind: _Kind, count: int, best: int) -> dict[str, NDArray[Any]]:
        """Bind room for `count` wanted logits, or the `best` of each, in which it stays from step to step."""
        wanted: dict[str, tuple[tuple[int, ...], DTypeLike]] = (
            {"best_logits": ((count, best), np.float32), "best_tokens": ((count, best), np.int64)}
            if best
            else {"logits": ((count, self.choices), np.float32)}
        ) | {"total": ((count,), np.float32)}
        if best and self.rules:
            wanted["allowed"] = ((count,), np.float32)
        room = self._room.get(kind)
        if room is None or any(room[name].shape != shape for name, (shape, _) in wanted.items()):
            room = self._room[kind] = {name: np.empty(shape, dtype) for name, (shape, dtype) in wanted.items()}
        if self.outputs.keys() != room.keys():
            # an output that is not asked for this time would be written to where it was bound last
            self.binding.clear_binding_outputs()
            self.buffers.bound = range(0)
        if self.outputs is not room:
            for name, array in room.items():
                self.binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            self.outputs = room
        return room
