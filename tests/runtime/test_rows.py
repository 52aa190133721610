"""The memory of a decoder, beside plain arrays: whatever is moved, grown or shrunk, a row keeps what is its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from heedful.runtime.engine.buffers import Buffer, HostBuffer
from heedful.runtime.engine.device import Device, choose_device
from heedful.runtime.engine.rows import Rows, Shape
from heedful.runtime.text.model import TextModel

COUNT, LAYERS, HEADS, DIM = 5, 2, 2, 3
CACHES = {"key": {"key": (HEADS, DIM), "value": (HEADS, DIM)}, "state": {"state": (1, 4)}}
Parts = dict[str, NDArray[np.float32]]

rows = st.integers(0, COUNT - 1)
# within a bucket, and many of them
slots = st.integers(1, 70) | st.integers(1, 600)
seeds = st.integers(0, 2**32 - 1)


def shape(cache: str, frames: int = 0) -> Shape:
    return Shape(LAYERS, HEADS, DIM, frames, 1024, 9, "float32", CACHES[cache])


def array(buffer: Buffer) -> NDArray[np.generic]:
    assert isinstance(buffer, HostBuffer)
    return buffer.array


class Moves(RuleBasedStateMachine):
    """Anything that may be done to rows; `memory` and `caches` are what each of them should hold."""

    @initialize(cache=st.sampled_from(sorted(CACHES)))
    def begin(self, cache: str) -> None:
        self.rows = Rows(shape(cache), choose_device("cpu"), COUNT)
        self.memory: dict[int, Parts] = {}
        self.caches: dict[int, Parts] = {}

    def bind(self) -> None:
        """As a step does: what is bound must be bound anew once the buffers are others."""
        self.rows.bound = range(COUNT)
        self.bound = {name: buffer.pointer() for name, buffer in (self.rows.memory | self.rows.caches).items()}

    @rule(row=rows, frames=slots, seed=seeds)
    def remember(self, row: int, frames: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        parts = {name: rng.random((HEADS, frames, DIM), np.float32) for name in self.rows.memory}
        self.bind()
        self.rows.remember({row: parts})
        self.memory[row] = parts

    @rule(row=rows, new=slots, room=st.integers(0, 100), seed=seeds)
    def write(self, row: int, new: int, room: int, seed: int) -> None:
        """The graph writes new slots after those that a row has."""
        rng = np.random.default_rng(seed)
        self.bind()
        before = self.rows.used[row]
        self.rows.used[row] = before + new
        self.rows.reserve(max(self.rows.used) + room)
        parts = {}
        for name, buffer in self.rows.caches.items():
            heads, width = buffer.shape[1], buffer.shape[3]
            parts[name] = rng.random((heads, new, width), np.float32)
            array(buffer)[self.rows.place[row], :, before : before + new] = parts[name]
        old = self.caches.get(row, {name: part[:, :0] for name, part in parts.items()})
        self.caches[row] = {name: np.concatenate([old[name], part], 1) for name, part in parts.items()}

    @precondition(lambda self: self.caches)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        """The first slots of a row are those that are left of it, in rising order."""
        row = data.draw(st.sampled_from(sorted(self.caches)))
        chosen = sorted(data.draw(st.sets(st.integers(0, self.rows.used[row] - 1), min_size=1)))
        self.rows.keep(row, np.array(chosen, np.intp))
        self.rows.used[row] = len(chosen)
        self.caches[row] = {name: part[:, chosen] for name, part in self.caches[row].items()}

    @rule(row=rows)
    def release(self, row: int) -> None:
        self.rows.used[row] = 0
        self.caches.pop(row, None)

    @rule(row=rows)
    def forget(self, row: int) -> None:
        self.rows.forget([row])
        self.memory.pop(row, None)

    @rule(room=slots)
    def reserve(self, room: int) -> None:
        """It gives back what is many times too much."""
        needed = max([room, *self.rows.used])
        self.bind()
        self.rows.reserve(needed)
        assert needed < self.rows.capacity
        # few rows grow by more, 32 slots together
        step = max(self.rows.bucket, 32 // (sum(map(bool, self.rows.used)) or 1))
        assert self.rows.capacity < 2.5 * (needed + step)

    @rule(chosen=st.lists(rows, unique=True, min_size=1))
    def gather(self, chosen: list[int]) -> None:
        """No row that is left out lies between those that are brought together."""
        places = self.rows.gather(chosen)
        assert sorted(self.rows.place[row] for row in chosen) == list(places)

    @invariant()
    def every_row_keeps_what_is_its_own(self) -> None:
        if not hasattr(self, "rows"):
            return
        assert sorted(self.rows.place) == list(range(COUNT))
        assert self.rows.capacity > max(self.rows.used)
        for held, buffers in ((self.memory, self.rows.memory), (self.caches, self.rows.caches)):
            for row, parts in held.items():
                for name, part in parts.items():
                    found = array(buffers[name])[self.rows.place[row], :, : part.shape[1]]
                    np.testing.assert_array_equal(found, part)
        for row, parts in self.memory.items():
            assert {part.shape[1] for part in parts.values()} == {self.rows.frames[row]}
            assert self.rows.frames[row] <= self.rows.room

    @invariant()
    def what_has_moved_is_not_bound(self) -> None:
        if getattr(self, "bound", None) and self.rows.bound:
            buffers = self.rows.memory | self.rows.caches
            assert {name: buffer.pointer() for name, buffer in buffers.items()} == self.bound


TestMoves = Moves.TestCase
TestMoves.settings = settings(max_examples=40)


@pytest.mark.parametrize("frames", [0, 1500])
def test_slots_that_nobody_wrote_hold_zeros(frames: int) -> None:
    """Padding may look at them, and a NaN would spread."""
    made = Rows(shape("key", frames), choose_device("cpu"), COUNT)
    made.reserve(700)
    if not frames:
        remember(made, 1, 300)
    for buffer in (made.memory | made.caches).values():
        found = array(buffer)[[0, 2, 3, 4]]
        np.testing.assert_array_equal(found, np.zeros_like(found))


def test_rows_that_lie_together_are_not_moved() -> None:
    made = Rows(shape("state"), choose_device("cpu"), COUNT)
    assert made.gather([3, 2]) == range(2, 4)
    assert made.place == list(range(COUNT))
    assert made.gather([4, 1]) == range(2)
    assert {made.place[4], made.place[1]} == {0, 1}


@pytest.mark.parametrize(
    "over", [lambda made: made.forget([0]), lambda made: remember(made, 0, 5)], ids=["forgotten", "replaced"]
)
def test_one_long_input_does_not_stay_in_the_way(over: Callable[[Rows], None]) -> None:
    """Attention costs as much as there is room: it shrinks once the long input is over."""
    made = Rows(shape("state"), choose_device("cpu"), COUNT)
    remember(made, 0, 1000)
    remember(made, 1, 5)
    assert made.room >= 1000
    over(made)
    remember(made, 1, 5)
    assert made.room < 500
    assert {buffer.shape[2] for buffer in made.memory.values()} == {made.room}


def test_what_a_row_attends_to_is_read_from_wherever_it_was_moved() -> None:
    """As it goes from the decoder of one lane to that of another."""
    one, other = (Rows(shape("key", 7), choose_device("cpu"), count) for count in (COUNT, 2))
    parts = {name: np.random.default_rng(3).random((HEADS, 7, DIM), np.float32) for name in one.memory}
    one.write_memory(3, parts)
    assert one.gather([3, 0]) == range(2)
    assert one.place[3] != 3
    taken = one.read_memory(3)
    one.write_memory(3, {name: np.zeros_like(part) for name, part in parts.items()})
    other.write_memory(1, taken)
    for name, buffer in other.memory.items():
        np.testing.assert_array_equal(array(buffer)[1], parts[name])
        assert not array(buffer)[0].any()


class Copied:
    """An array in the memory of a GPU that plays itself: each copy from there and to there is noted."""

    copies: ClassVar[list[str]] = []

    def __init__(self, array: NDArray[np.generic], *where: object) -> None:
        self.array = array.copy()

    def numpy(self) -> NDArray[np.generic]:
        self.copies.append("read")
        return self.array.copy()

    def update_inplace(self, array: NDArray[np.generic]) -> None:
        self.copies.append("write")
        self.array = array.copy()


class Encoder:
    """Makes of each token a frame that is nothing but its number."""

    def run(self, names: Sequence[str], given: Mapping[str, NDArray[np.int64]], options: object) -> list[Any]:
        frames = given["source"][:, None, :, None].astype(np.float32)
        return [np.broadcast_to(frames, (len(frames), HEADS, frames.shape[2], DIM)) for _ in names]


def test_texts_that_are_encoded_together_are_copied_to_a_gpu_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its buffers hold all rows, and are copied whole."""
    monkeypatch.setattr("heedful.runtime.engine.buffers.ort.OrtValue.ortvalue_from_numpy", Copied)
    made = Rows(shape("key"), Device("cuda"), COUNT)
    decoder: Any = SimpleNamespace(memory=made.memory, buffers=made)
    model: Any = SimpleNamespace(encoder=Encoder(), padded=lambda sources: TextModel.padded(model, sources))
    sources = {3: [5, 6, 7], 0: [1, 2, 3, 4, 5, 6], 4: [8, 9, 1, 2]}
    Copied.copies.clear()
    TextModel.encode(model, decoder, sources)
    assert Copied.copies == ["read", "write"] * len(made.memory)
    for row, source in sources.items():
        for part in made.read_memory(row).values():
            np.testing.assert_array_equal(part[:, : len(source)], np.tile(np.c_[source], (HEADS, 1, DIM)))
            assert not part[:, len(source) :].any()


FORKED = """
import os
import numpy as np
from heedful.runtime.engine.buffers import HostBuffer

made = HostBuffer((1, 1, 2, 1), "float32")
grown = HostBuffer((1, 1, 2, 1), "float32").resized(4, [0])
if not (child := os.fork()):
    for buffer in (made, grown):
        buffer.array[...] = 5
    os._exit(0)
os.waitpid(child, 0)
print(made.array.any(), grown.array.any())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process is forked here")
def test_a_forked_process_has_memory_of_its_own() -> None:
    """Of what one process decodes nothing may get into another."""
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == (["False", "False"], "")


def remember(rows: Rows, row: int, frames: int) -> None:
    rows.remember({row: {name: np.ones((HEADS, frames, DIM), np.float32) for name in rows.memory}})
