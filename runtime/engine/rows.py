"""The memory of a decoder: for each input, a row, what it attends to and what it keeps of its own tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from heedful.runtime.engine.buffers import Buffer, HostBuffer, allocate
from heedful.runtime.engine.device import Device

# slots by which buffers grow at least: attention costs as much as the capacity, growing costs a copy
BUCKET = {"cpu": 8, "cuda": 512}
# of all rows that are in use together, caches grow by as many: what few rows attend to stays in a core's cache
_FEW = 32


@dataclass(frozen=True, slots=True)
class Shape:
    """What the decoder's graph is made for.

    Its memory has keys and values of `heads` heads of width `head_dim` for `frames` frames, 0: as many as the input
    has. `positions` limits prompt and generated tokens together. `cache` has the parts of a layer's cache, each with
    its number of heads and its width. `memory` has the parts of a layer's memory, each with its dtype and its shape for
    one input, where they are not keys and values (heads, frames, head_dim) of `dtype`.
    """

    layers: int
    heads: int
    head_dim: int
    frames: int
    positions: int
    vocabulary: int
    dtype: str
    cache: Mapping[str, tuple[int, int]]
    memory: Mapping[str, tuple[str, Sequence[int]]] = field(default_factory=dict)


class Rows:
    """Buffers for `count` inputs side by side.

    They grow and shrink in buckets of slots. Rows come and go: where rows can be moved, those that a step leaves out
    cost it nothing.
    """

    def __init__(self, shape: Shape, device: Device, count: int) -> None:
        self.shape = shape
        self.device = device
        self.count = count
        self.place = list(range(count))  # where in the buffers each row is
        self.used = [0] * count  # slots of each row that are written
        self.frames = [shape.frames] * count  # frames of each row's memory that are real
        self.bucket = BUCKET[device.name]
        self.capacity = self.bucket
        self.room = shape.frames or self.bucket
        plain = (shape.dtype, (shape.heads, self.room, shape.head_dim))
        self.memory = {
            f"{layer}.{part}": allocate((count, *size), dtype, device)
            for layer in range(shape.layers)
            for part, (dtype, size) in (shape.memory or {"key": plain, "value": plain}).items()
        }
        self.caches = {
            f"{layer}.{part}": allocate((count, heads, self.capacity, width), shape.dtype, device)
            for layer in range(shape.layers)
            for part, (heads, width) in shape.cache.items()
        }
        self.bound = range(0)  # places that the buffers are bound to; empty when they must be bound anew

    def _fitting(self, slots: int, least: int = 0) -> int:
        """A capacity for `slots` slots: whole buckets, of `least` slots or more, so large that to grow is rare, at most
        a quarter too much where slots are many.
        """
        step = max(self.bucket, least, 1 << max(slots.bit_length() - 3, 0))
        return step * -(-slots // step)

    def reserve(self, slots: int) -> None:
        """Room for `slots` slots and one more, the last, which only padding looks at; less than twice that."""
        capacity = self._fitting(slots + 1, _FEW // (sum(map(bool, self.used)) or 1))
        if capacity <= self.capacity < 2 * capacity:
            return
        self.caches = self._resized(self.caches, capacity, self.used, self.capacity)
        self.capacity = capacity
        self.bound = range(0)

    def remember(self, memories: Mapping[int, Mapping[str, NDArray[np.generic]]]) -> None:
        """Keep what an encoder made of each row's input: parts (heads, frames, head_dim), as `memory` is named.

        Rows whose inputs come together are told of together, since a GPU's buffer is copied whole each time.
        """
        for row, memory in memories.items():
            self.frames[row] = next(iter(memory.values())).shape[1]
        needed = max(self.frames)
        room = self._fitting(needed)
        if not room <= self.room < 2 * room:
            self.memory = self._resized(self.memory, room, self.frames, self.room)
            self.room = room
            self.bound = range(0)
        self._write(memories)

    def read_memory(self, row: int) -> dict[str, NDArray[np.generic]]:
        """A copy of what `row` attends to."""
        return {name: memory.read(self.place[row]) for name, memory in self.memory.items()}

    def write_memory(self, row: int, memory: Mapping[str, NDArray[np.generic]]) -> None:
        """Have `row` attend to these parts, for which there is room: of its own frames, or read of a row elsewhere."""
        self._write({row: memory})

    def _write(self, memories: Mapping[int, Mapping[str, NDArray[np.generic]]]) -> None:
        for name, buffer in self.memory.items():
            buffer.write({self.place[row]: memory[name] for row, memory in memories.items()})

    def forget(self, rows: Sequence[int]) -> None:
        """What the memory holds of `rows` is no longer needed."""
        for row in rows:
            self.frames[row] = self.shape.frames

    def _resized(self, buffers: dict[str, Buffer], slots: int, used: Sequence[int], before: int) -> dict[str, Buffer]:
        kept = [0] * self.count
        for row, place in enumerate(self.place):
            kept[place] = min(used[row], before, slots)
        return {name: buffer.resized(slots, kept) for name, buffer in buffers.items()}

    def keep(self, row: int, slots: NDArray[np.intp]) -> None:
        """Move these slots of the caches of `row`, in rising order, to the front."""
        stay = int(np.count_nonzero(slots == np.arange(len(slots))))
        for cache in self.caches.values():
            cache.move(self.place[row], slots[stay:], stay)

    def gather(self, rows: list[int]) -> range:
        """The places that `rows` reach over, once they are brought together at the front if they lie apart.

        On a GPU a row cannot be moved without a kernel for it: there the rows between run along idle.
        """
        places = sorted(self.place[row] for row in rows)
        reach = range(places[0], places[-1] + 1)
        if len(reach) == len(rows) or self.device.name != "cpu":
            return reach
        buffers = [*self.memory.values(), *self.caches.values()]
        front = [row for row, place in enumerate(self.place) if place < len(rows) and row not in rows]
        for row in rows:
            if self.place[row] >= len(rows):
                other = front.pop()
                for buffer in buffers:
                    assert isinstance(buffer, HostBuffer)
                    buffer.swap(self.place[row], self.place[other])
                self.place[row], self.place[other] = self.place[other], self.place[row]
        return range(len(rows))

    def bind(self, binding: ort.IOBinding, places: range) -> None:
        """Bind the rows at `places` of every buffer; past and present to one address, so the graph writes in place."""
        if self.bound == places:
            return
        where = (self.device.name, 0)
        for name, cache in self.caches.items():
            what = (cache.dtype, (len(places), *cache.shape[1:]), cache.pointer(places.start))
            binding.bind_input(f"past.{name}", *where, *what)
            binding.bind_output(f"present.{name}", *where, *what)
        for name, memory in self.memory.items():
            what = (memory.dtype, (len(places), *memory.shape[1:]), memory.pointer(places.start))
            binding.bind_input(f"memory.{name}", *where, *what)
        self.bound = places

    def bind_memory(self, binding: ort.IOBinding, row: int, *, output: bool) -> None:
        """Bind the memory of `row` as an encoder's outputs, or as another graph's inputs: nothing is copied."""
        bind = binding.bind_output if output else binding.bind_input
        for name, memory in self.memory.items():
            shape = (1, *memory.shape[1:])
            pointer = memory.pointer(self.place[row])
            bind(f"memory.{name}", self.device.name, 0, memory.dtype, shape, pointer)
