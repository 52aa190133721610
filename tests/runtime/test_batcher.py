"""Requests of several threads decoded together: each gets what it gets alone, whatever and whoever comes between."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heedful.runtime.engine.batcher import Batcher
from heedful.runtime.engine.decoder import All, Decoder, Feed, Scores
from heedful.runtime.engine.generate import Job, generate
from heedful.runtime.engine.search import Beam, Hypothesis, Limits, Sample, Search

END, VOCABULARY, ROWS = 0, 11, 4


class Reader:
    """A decoder whose logits depend on all that a token may see; `fed` are the rows of each step."""

    def __init__(self, rows: int = ROWS, before: Callable[[], None] = lambda: None) -> None:
        self.rows = rows
        self.before = before
        self.spare = 5
        self.written: dict[int, list[int]] = {}
        self.fed: list[list[int]] = []

    def step(self, feeds: Mapping[int, Feed]) -> dict[int, All]:
        self.before()
        self.fed.append(sorted(feeds))
        return {row: self._read(self.written.setdefault(row, []), feed) for row, feed in feeds.items()}

    def release(self, row: int) -> None:
        self.written.pop(row, None)

    def _read(self, written: list[int], feed: Feed) -> All:
        if feed.kept is not None:
            written[:] = [written[slot] for slot in feed.kept]
        assert feed.at == len(written)
        written += feed.tokens
        texts = [np.array(written)[feed.mask[i]].tolist() for i in feed.select]
        logits = np.stack([np.random.default_rng(text).normal(0, 1.5, VOCABULARY) for text in texts])
        return All(logits.astype(np.float32), np.log(np.exp(logits).sum(axis=1)).astype(np.float32))


def batcher(reader: Reader) -> Batcher:
    return Batcher(cast(Decoder, reader))


def search(width: int, length: int) -> Search:
    limits = Limits(END, length)
    return Sample(limits) if width == 1 else Beam(limits, width=width)


# prompt, beams, most tokens
Text = tuple[list[int], int, int]
texts = st.tuples(
    st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=4), st.integers(1, 4), st.integers(1, 9)
)


def alone(text: Text) -> list[Hypothesis]:
    prompt, width, length = text
    job = Job(0, prompt, search(width, length))
    generate(Reader(), [job])
    return job.search.results()


@settings(deadline=None, max_examples=60)
@given(
    callers=st.lists(st.tuples(st.lists(texts, min_size=1, max_size=ROWS), st.floats(0, 0.004)), min_size=1, max_size=7)
)
def test_each_gets_what_it_gets_alone(callers: list[tuple[list[Text], float]]) -> None:
    shared = batcher(Reader())

    def request(mine: Sequence[Text], delay: float) -> list[list[Hypothesis]]:
        time.sleep(delay)
        with shared.rows(len(mine)) as rows:
            jobs = [
                Job(row, prompt, search(width, length)) for row, (prompt, width, length) in zip(rows, mine, strict=True)
            ]
            shared.generate(jobs)
        return [job.search.results() for job in jobs]

    with ThreadPoolExecutor(len(callers)) as pool:
        found = [pool.submit(request, *caller) for caller in callers]
    assert [future.result() for future in found] == [[alone(text) for text in mine] for mine, _ in callers]


def in_background(function: Callable[[], Any]) -> "Future[Any]":
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run).start()
    return future


class Gate:
    """Lets steps through one at a time."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self) -> None:
        self.reached.release()
        assert self.opened.acquire(timeout=30)

    def open(self, steps: int) -> None:
        for _ in range(steps):
            self.opened.release()


def endless(row: int, length: int) -> Job:
    """A job of exactly `length` tokens."""
    return Job(row, [1], Sample(Limits(-1, length)))


def test_a_job_joins_and_leaves_between_steps() -> None:
    gate = Gate()
    reader = Reader(before=gate)
    shared = batcher(reader)
    long = in_background(lambda: shared.generate([endless(0, 6)]))
    assert gate.reached.acquire(timeout=30)  # it reads its prompt
    short = in_background(lambda: shared.generate([endless(2, 2)]))
    while not shared._work:
        time.sleep(0.001)
    gate.open(100)
    long.result(30), short.result(30)
    # a step of the first is under way; then the prompt of the second, then both until the second is over
    assert reader.fed == [[0], [0], [2], [0, 2], [0], [0], [0]]


def test_a_call_runs_between_steps_and_hands_on_its_error() -> None:
    shared = batcher(Reader())
    assert shared.call(lambda: 41 + 1) == 42
    with pytest.raises(ZeroDivisionError):
        shared.call(lambda: 1 // 0)


class Broken(Sample):
    def advance(self, scores: Scores) -> Any:
        raise ZeroDivisionError


def test_an_error_of_one_is_not_its_neighbours() -> None:
    shared = batcher(Reader())
    fine = endless(1, 5)
    with ThreadPoolExecutor() as pool:
        good = pool.submit(shared.generate, [fine])
        bad = pool.submit(shared.generate, [Job(0, [1], Broken(Limits(END, 5)))])
    assert isinstance(bad.exception(), ZeroDivisionError)
    assert good.exception() is None
    assert len(fine.search.results()[0].tokens) == 5


def test_an_error_of_the_decoder_is_everyones_and_does_not_last() -> None:
    failing = [False, False, True]

    def fail() -> None:
        if failing and failing.pop(0):
            raise MemoryError

    reader = Reader(before=fail)
    shared = batcher(reader)
    with pytest.raises(MemoryError):
        shared.generate([endless(0, 5), endless(1, 5)])
    assert not reader.written
    after = endless(0, 5)
    shared.generate([after])
    assert len(after.search.results()[0].tokens) == 5


class Prompting(Reader):
    """Fails over the prompt of row 1."""

    def step(self, feeds: Mapping[int, Feed]) -> dict[int, All]:
        if sorted(feeds) == [1]:
            raise MemoryError
        return super().step(feeds)


def test_an_error_of_the_decoder_over_a_prompt_is_everyones() -> None:
    """Those who were waiting for their next step may have lost what it goes by."""
    reader = Prompting()
    shared = batcher(reader)

    def both_are_here() -> None:
        while not shared._work:
            time.sleep(0.001)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(shared.generate, [endless(0, 5)], both_are_here)
        while not shared._taken:
            time.sleep(0.001)
        second = pool.submit(shared.generate, [endless(1, 5)])
    assert [type(each.exception()) for each in (first, second)] == [MemoryError, MemoryError]
    assert not reader.written


def test_what_was_prepared_is_released_where_that_fails() -> None:
    reader = Reader()

    def prepare() -> None:
        reader.written[0] = [1]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        batcher(reader).generate([endless(0, 5)], prepare)
    assert not reader.written


def test_rows_come_in_order_of_arrival() -> None:
    shared = batcher(Reader())
    order = []

    def wait_for(count: int, name: str) -> None:
        with shared.rows(count):
            order.append(name)

    with shared.rows(2):
        waiting = []
        # the second could have its row at once, but would then keep the first waiting for ever
        for count, name in ((3, "three"), (1, "one")):
            waiting.append(in_background(partial(wait_for, count, name)))
            while len(shared._line) < len(waiting):
                time.sleep(0.001)
        assert order == []
    for each in waiting:
        each.result(30)
    assert order == ["three", "one"]


def test_a_caller_who_is_interrupted_while_it_computes_leaves_no_job_in_its_row() -> None:
    steps = []

    def interrupt() -> None:
        steps.append(threading.current_thread())
        if len(steps) == 4:
            raise KeyboardInterrupt

    reader = Reader(before=interrupt)
    shared = batcher(reader)
    with pytest.raises(KeyboardInterrupt):
        shared.generate([endless(0, 10**6)])
    assert not reader.written
    after = endless(0, 3)
    shared.generate([after])
    assert len(after.search.results()[0].tokens) == 3


@pytest.mark.parametrize("struck", [2, 3], ids=["its prompt", "a step of both"])
def test_who_waits_is_told_when_the_one_who_computes_is_interrupted(struck: int) -> None:
    """The first reads its prompt and steps; then the second's prompt is read, then both step."""
    gate = Gate()
    steps: list[None] = []

    def step() -> None:
        gate()
        steps.append(None)
        if len(steps) == struck + 1:
            raise KeyboardInterrupt

    reader = Reader(before=step)
    shared = batcher(reader)
    first = in_background(lambda: shared.generate([endless(0, 10**6)]))
    assert gate.reached.acquire(timeout=30)
    second = in_background(lambda: shared.generate([endless(1, 10**6)]))
    while not shared._work:
        time.sleep(0.001)
    gate.open(100)
    with pytest.raises(KeyboardInterrupt):
        first.result(30)
    with pytest.raises(RuntimeError, match="another request was interrupted by KeyboardInterrupt"):
        second.result(30)
    assert not reader.written


def test_a_caller_who_is_interrupted_while_it_waits_leaves_no_job_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    reader = Reader(before=gate)
    shared = batcher(reader)
    long = in_background(lambda: shared.generate([endless(0, 40)]))
    assert gate.reached.acquire(timeout=30)  # another computes
    waits = threading.Condition.wait_for
    told: list[bool] = []

    def interrupted(self: Any, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        if threading.current_thread() is threading.main_thread() and not told:
            told.append(True)
            gate.open(100)
            raise KeyboardInterrupt
        return waits(self, predicate, timeout)

    monkeypatch.setattr(threading.Condition, "wait_for", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shared.generate([endless(1, 10**6)])
    long.result(30)
    assert not reader.written


def test_no_thread_is_started() -> None:
    before = threading.active_count()
    shared = batcher(Reader())
    shared.generate([endless(0, 3)])
    assert threading.active_count() == before


def test_each_in_turn_computes_until_it_has_its_own() -> None:
    gate = Gate()
    who: list[threading.Thread] = []

    def step() -> None:
        who.append(threading.current_thread())
        gate()

    reader = Reader(before=step)
    shared = batcher(reader)
    short = in_background(lambda: shared.generate([endless(0, 2)]))
    assert gate.reached.acquire(timeout=30)
    long = in_background(lambda: shared.generate([endless(1, 6)]))
    while not shared._work:
        time.sleep(0.001)
    gate.open(100)
    short.result(30), long.result(30)
    assert len(set(who)) == 2
    assert who.index(who[-1]) > 0  # the first had what it wanted, and the second went on
