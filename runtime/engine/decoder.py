"""One decoder session over the rows whose caches it reads and writes in place."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

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
        self.allows = any(each.name == "allowed" for each in session.get_outputs())
        self.inputs = Inputs(self.binding, names, device)
        self.outputs: dict[str, NDArray[Any]] = {}  # bound beside the caches
        # what was bound last for steps of each kind: for how many tokens, how many logits of each
        self._room: dict[_Kind, tuple[tuple[int, int], dict[str, NDArray[Any]]]] = {}

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
        rows, count = self.buffers, len(places)
        tokens, positions = [0] * (count * width), [0] * (count * width)
        at, frames = [rows.capacity - width] * count, [1] * count
        select: list[int] = []
        rules: list[int] = []
        ends = [0]
        mask = self.inputs.room("mask", (count, width, rows.capacity), np.bool_)
        mask.fill(False)
        # padding must see a slot, or its softmax is NaN and poisons the slot it writes
        mask[:, :, -1] = padded = sum(len(feed.tokens) for feed in feeds.values()) < count * width
        for row, feed in feeds.items():
            place, new = rows.place[row] - places.start, len(feed.tokens)
            start = place * width
            tokens[start : start + new], positions[start : start + new] = feed.tokens, feed.positions
            at[place], frames[place] = feed.at, rows.frames[row]
            select += [start + i for i in feed.select]
            rules += chain.from_iterable(feed.wanted.rules)
            ends.append(len(select))
            if padded:
                mask[place, :new, -1] = False
            mask[place, :new, : feed.mask.shape[1]] = feed.mask
        put = self.inputs.put
        put("tokens", (count, width), tokens)
        put("positions", (count, width), positions)
        put("at", (count,), at)
        put("frames", (count,), frames)
        put("select", (len(select),), select)
        put("rule", (len(select), 2), rules or [0] * (2 * len(select)))
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
        self.inputs.put("best", (1,), [best])
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
        size = count, best or self.choices
        before, room = self._room.get(kind, ((0, 0), {}))
        if before != size:
            room = self._output_room(count, best)
            self._room[kind] = size, room
        if self.outputs.keys() != room.keys():
            # an output that is not asked for this time would be written to where it was bound last
            self.binding.clear_binding_outputs()
            self.buffers.bound = range(0)
        if self.outputs is not room:
            for name, array in room.items():
                self.binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            self.outputs = room
        return room

    def _output_room(self, count: int, best: int) -> dict[str, NDArray[Any]]:
        room: dict[str, NDArray[Any]] = {"total": np.empty(count, np.float32)}
        if not best:
            return room | {"logits": np.empty((count, self.choices), np.float32)}
        if self.allows:
            room["allowed"] = np.empty(count, np.float32)
        logits, tokens = np.empty((count, best), np.float32), np.empty((count, best), np.int64)
        return room | {"best_logits": logits, "best_tokens": tokens}
