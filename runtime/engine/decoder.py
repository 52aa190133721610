"""One decoder session and the caches it reads and writes in place, a row for each input being decoded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from heedful.runtime.engine.buffers import Buffer, HostBuffer, allocate
from heedful.runtime.engine.device import Device

FEW = 8
"""New tokens up to which a decoder's graph may attend to each on its own (export/fold.py)."""

# slots by which caches grow: attention costs as much as the capacity, growing costs a copy
_BUCKET = {"cpu": 64, "cuda": 512}


@dataclass(frozen=True, slots=True)
class Shape:
    """What the decoder's graph is made for: `positions` limits prompt and generated tokens together."""

    layers: int
    heads: int
    head_dim: int
    frames: int
    positions: int
    vocabulary: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Feed:
    """New tokens of one input: tokens and positions (n,), the first slot they take, the slots each may see (n, used)
    and which of the n tokens' logits are wanted. Before that the slots `kept` (at,) are moved to the front, if given.
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    at: int
    mask: NDArray[np.bool_]
    select: NDArray[np.int64]
    kept: NDArray[np.intp] | None = None


class Decoder:
    """Runs decoder.onnx over `rows` inputs at most.

    Self-attention caches grow and shrink in buckets of slots; neither they nor the encoder's keys and values are copied
    in a step. Rows come and go: where rows can be moved, those that a step leaves out cost it nothing.
    """

    def __init__(self, session: ort.InferenceSession, shape: Shape, device: Device, rows: int) -> None:
        self.session = session
        self.shape = shape
        self.device = device
        self.rows = rows
        self.place = list(range(rows))  # where in the buffers each row is
        self.used = [0] * rows  # slots of each row that are written
        self.capacity = _BUCKET[device.name]
        names = [f"{layer}.{part}" for layer in range(shape.layers) for part in ("key", "value")]
        self.memory = {name: self._allocate(rows, shape.frames) for name in names}
        self.caches = {name: self._allocate(rows, self.capacity) for name in names}
        self.binding = session.io_binding()
        self.bound = range(0)  # places that the buffers are bound to; empty when they must be bound anew
        self.held: list[NDArray[Any]] = []  # bound inputs are borrowed, not copied

    def _allocate(self, rows: int, slots: int) -> Buffer:
        return allocate((rows, self.shape.heads, slots, self.shape.head_dim), self.shape.dtype, self.device)

    def step(self, feeds: Mapping[int, Feed]) -> dict[int, NDArray[np.float32]]:
        """Write the new tokens of some rows into their caches; the other rows stay as they are.

        Returns the wanted logits (len(select), vocabulary), float32, of each row fed. One new token, a few and many are
        fed apart: onnxruntime adds up their scores in different orders, so that padding a row to the width of its
        neighbours would change its last bits.
        """
        kinds: dict[tuple[bool, bool], dict[int, Feed]] = {}
        for row, feed in feeds.items():
            new = len(feed.tokens)
            kinds.setdefault((new > 1, new > FEW), {})[row] = feed
        return {row: logits for kind in kinds.values() for row, logits in self._step(kind).items()}

    def _step(self, feeds: Mapping[int, Feed]) -> dict[int, NDArray[np.float32]]:
        width = max(len(feed.tokens) for feed in feeds.values())
        for row, feed in feeds.items():
            if feed.kept is not None:
                for cache in self.caches.values():
                    cache.keep(self.place[row], feed.kept)
            self.used[row] = feed.at + len(feed.tokens)
        self._reserve(max(self.used) + width)
        places = self._gather(list(feeds))
        count = len(places)
        tokens = np.zeros((count, width), np.int64)
        positions = np.zeros((count, width), np.int64)
        at = np.full(count, self.capacity - width, np.int64)
        mask = np.zeros((count, width, self.capacity), np.bool_)
        # padding must see a slot, or its softmax is NaN and poisons the slot it writes
        mask[:, :, -1] = True
        select = []
        for row, feed in feeds.items():
            at_row, new = self.place[row] - places.start, len(feed.tokens)
            tokens[at_row, :new], positions[at_row, :new], at[at_row] = feed.tokens, feed.positions, feed.at
            mask[at_row, :new] = False
            mask[at_row, :new, : feed.mask.shape[1]] = feed.mask
            select.append(at_row * width + feed.select)
        logits = self._run(places, tokens=tokens, positions=positions, at=at, mask=mask, select=np.concatenate(select))
        return dict(zip(feeds, np.split(logits, np.cumsum([len(each) for each in select])[:-1]), strict=True))

    def release(self, row: int) -> None:
        """What the caches hold of `row` is no longer needed."""
        self.used[row] = 0

    def _reserve(self, slots: int) -> None:
        """Room for `slots` slots and one more, the last, which only padding looks at; no more than a few times that."""
        bucket = _BUCKET[self.device.name]
        capacity = bucket * (slots // bucket + 1)
        if capacity <= self.capacity < 4 * capacity:
            return
        used = [0] * self.rows
        for row, place in enumerate(self.place):
            used[place] = min(self.used[row], self.capacity, capacity)
        self.caches = {name: cache.resized(capacity, used) for name, cache in self.caches.items()}
        self.capacity = capacity
        self.bound = range(0)

    def _gather(self, rows: list[int]) -> range:
        """The places that `rows` reach over, once they are brought together at the front if they lie apart.

        On a GPU a row cannot be moved without a kernel for it: there the rows between run along idle.
        """
        places = sorted(self.place[row] for row in rows)
        reach = range(places[0], places[-1] + 1)
        buffers = [*self.memory.values(), *self.caches.values()]
        if len(reach) == len(rows) or not all(isinstance(buffer, HostBuffer) for buffer in buffers):
            return reach
        front = [row for row, place in enumerate(self.place) if place < len(rows) and row not in rows]
        for row in rows:
            if self.place[row] >= len(rows):
                other = front.pop()
                for buffer in buffers:
                    assert isinstance(buffer, HostBuffer)
                    buffer.swap(self.place[row], self.place[other])
                self.place[row], self.place[other] = self.place[other], self.place[row]
        return range(len(rows))

    def _run(self, places: range, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        if self.bound != places:
            self._bind(places)
        logits = np.empty((len(inputs["select"]), self.shape.vocabulary), np.float32)
        self.held = [*inputs.values(), logits]
        for name, value in inputs.items():
            self.binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        self.binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self.session.run_with_iobinding(self.binding)
        return logits

    def _bind(self, places: range) -> None:
        """Bind the rows at `places` of every buffer; past and present to one address, so the graph writes in place."""
        where = (self.device.name, 0, np.dtype(self.shape.dtype))
        for name, cache in self.caches.items():
            shape = (len(places), *cache.shape[1:])
            self.binding.bind_input(f"past.{name}", *where, shape, cache.pointer(places.start))
            self.binding.bind_output(f"present.{name}", *where, shape, cache.pointer(places.start))
        for name, memory in self.memory.items():
            shape = (len(places), *memory.shape[1:])
            self.binding.bind_input(f"memory.{name}", *where, shape, memory.pointer(places.start))
        self.bound = places

    def bind_memory(self, binding: ort.IOBinding, row: int, *, output: bool) -> None:
        """Bind the memory of `row` as an encoder's outputs, or as another graph's inputs: nothing is copied."""
        bind = binding.bind_output if output else binding.bind_input
        for name, memory in self.memory.items():
            shape = (1, *memory.shape[1:])
            pointer = memory.pointer(self.place[row])
            bind(f"memory.{name}", self.device.name, 0, np.dtype(self.shape.dtype), shape, pointer)
