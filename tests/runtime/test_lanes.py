"""Which lane an input goes to: the wide one with few others, the narrow ones with as many as there are threads."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from heedful.runtime.bundle import Bundle
from heedful.runtime.engine.decoder import Decoder
from heedful.runtime.engine.device import Device
from heedful.runtime.engine.lanes import Lanes, Place
from heedful.runtime.engine.model import Model
from heedful.runtime.engine.rows import Rows, Shape
from heedful.runtime.engine.sessions import Sessions

CPU = Device("cpu")
NOTHING = Bundle(Path(), {"files": {}})


SHAPE = Shape(1, 1, 2, 3, 9, 9, "float32", {"state": (1, 2)})


class Still:
    """A decoder that never steps: nothing but rows."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.buffers = Rows(SHAPE, CPU, rows)


@dataclass
class Sized:
    """A model that is nothing but its sessions, none of which is ever opened."""

    sessions: Sessions

    @property
    def device(self) -> Device:
        return self.sessions.device

    def decoder(self, rows: int) -> Still:
        return Still(rows)

    def on_one_thread(self) -> "Sized":
        return Sized(self.sessions.on(1))


def lanes(threads: int, rows: int, device: Device = CPU, few: int | None = None) -> Lanes[Model]:
    return Lanes(
        cast(Model, Sized(Sessions(NOTHING, device, threads))),
        rows=rows,
        few=threads - 1 if few is None else few,
        decoder=cast(Callable[[Model, int], Decoder], Sized.decoder),
    )


def held(stack: ExitStack, shared: Lanes[Model]) -> Place[Model]:
    return stack.enter_context(shared.place())


def test_an_input_by_itself_has_all_threads() -> None:
    shared = lanes(threads=4, rows=8)
    for _ in range(3):
        with shared.place() as place:
            assert (place.model.sessions.threads, place.row) == (4, 0)


def test_inputs_in_company_are_dealt_out_evenly() -> None:
    shared = lanes(threads=2, rows=6)
    with ExitStack() as stack:
        first = held(stack, shared)
        others = [held(stack, shared) for _ in range(6)]
    assert first.batcher is shared.wide.batcher
    assert {place.model.sessions.threads for place in others} == {1}
    used = [(id(place.batcher), place.row) for place in others]
    assert len(set(used)) == 6
    assert len({batcher for batcher, _ in used}) == 2
    assert [batcher for batcher, _ in used[:2]] == [batcher for batcher, _ in used[2:4]]


def test_fewer_inputs_than_threads_share_all_threads() -> None:
    shared = lanes(threads=4, rows=8)
    with ExitStack() as stack:
        wide = [held(stack, shared) for _ in range(3)]
        narrow = held(stack, shared)
    assert {place.batcher for place in wide} == {shared.wide.batcher}
    assert [place.row for place in wide] == [0, 1, 2]
    assert narrow.model.sessions.threads == 1


@pytest.mark.parametrize(("company", "wide"), [(1, True), (3, True), (4, False), (9, False)])
def test_company_that_is_known_to_come_counts(company: int, wide: bool) -> None:
    shared = lanes(threads=4, rows=8)
    with shared.place(company=company) as place:
        assert (place.batcher is shared.wide.batcher) == wide


@pytest.mark.parametrize(
    ("rows", "width", "company", "wide"),
    [(2, 4, 1, True), (3, 4, 1, False), (1, 4, 2, True), (1, 4, 3, False), (8, 1, 8, True), (1, 9, 1, False)],
)
def test_hypotheses_count_and_not_inputs(rows: int, width: int, company: int, wide: bool) -> None:
    shared = lanes(threads=2, rows=16, few=8)
    with shared.place(rows, width=width, company=company) as place:
        assert place.model.sessions.threads == (2 if wide else 1)
        assert len(place.rows) == len(set(place.rows)) == rows


def test_lanes_that_nobody_needs_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def decoder(model: Sized, rows: int) -> Still:
        made.append(model.sessions.threads)
        return Still(rows)

    monkeypatch.setattr(Sized, "decoder", decoder)
    none = lanes(threads=2, rows=16, few=0)
    assert made == [1, 1]
    with none.place(2, company=9):
        assert made == [1, 1]
    made.clear()
    some = lanes(threads=2, rows=16, few=4)
    assert made == [2]
    with some.place(3):
        assert made == [2]
        with some.place(2):
            assert made == [2, 1, 1]


@pytest.mark.parametrize(("threads", "rows", "device"), [(1, 3, "cpu"), (4, 1, "cpu"), (4, 3, "cuda")])
def test_there_is_one_lane_where_more_would_not_help(threads: int, rows: int, device: str) -> None:
    shared = lanes(threads, rows, Device(device))  # type: ignore[arg-type]
    with ExitStack() as stack:
        places = [held(stack, shared) for _ in range(rows)]
    assert {place.batcher for place in places} == {shared.wide.batcher}
    assert [place.row for place in places] == list(range(rows))


def test_there_are_as_many_lanes_as_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one for each core of the machine rows would be alone in theirs, and share nothing."""
    monkeypatch.setattr("heedful.runtime.engine.lanes.cores", lambda: 2)
    shared = lanes(threads=0, rows=6, few=0)
    assert (shared.threads, shared.most) == (2, 3)


def written(place: Place[Model], number: float) -> None:
    """As an encoder does."""
    parts = {name: np.full((1, 3, 2), number, np.float32) for name in place.buffers.memory}
    place.buffers.write_memory(place.row, parts)


def test_an_input_leaves_the_wide_lane_before_it_is_decoded_if_others_have_come() -> None:
    shared = lanes(threads=2, rows=6)
    with ExitStack() as stack:
        first = held(stack, shared)
        written(first, 5)
        others = [held(stack, shared) for _ in range(2)]
        for place in others:
            written(place, 1)
        with shared.settled(first) as settled:
            assert settled.model.sessions.threads == 1
            assert settled.buffers.read_memory(settled.row).keys() == first.buffers.memory.keys()
            for place, number in ((settled, 5), *((other, 1) for other in others)):
                for part in place.buffers.read_memory(place.row).values():
                    np.testing.assert_array_equal(part, np.full((1, 3, 2), number))
        # what was held for it is free again
        assert [held(stack, shared).batcher for _ in range(4)].count(settled.batcher) == 2


@pytest.mark.parametrize("others", [0, 1, 4])
def test_an_input_stays_where_it_is_alone_or_narrow_or_where_there_is_no_room(others: int) -> None:
    shared = lanes(threads=2, rows=4)
    with ExitStack() as stack:
        places = [held(stack, shared) for _ in range(1 + others)]
        if others == 1:
            places = places[1:]
        with shared.settled(places[0]) as settled:
            assert settled is places[0]


def test_no_more_inputs_are_under_way_than_there_are_rows() -> None:
    shared = lanes(threads=2, rows=4)
    most, now, lock = 0, 0, threading.Lock()

    def take(number: int) -> None:
        nonlocal most, now
        with shared.place(company=12):
            with lock:
                now += 1
                most = max(most, now)
            threading.Event().wait(0.002)
            with lock:
                now -= 1

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(take, range(40)))
    assert most == 4
    assert now == 0
