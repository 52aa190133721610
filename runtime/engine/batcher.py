"""Continuous batching: the jobs of many callers, decoded together in the rows of one decoder."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TypeVar

from heedful.runtime.engine.decoder import Decoder
from heedful.runtime.engine.generate import Job, Running, raise_first
from heedful.runtime.errors import BusyError

T = TypeVar("T")

# seconds for which a thread waits for more work; a new one has caches and heaps to fill again
_IDLE = 10.0


class _Group:
    """Jobs that one caller waits for, and what must be done before they begin."""

    def __init__(self, jobs: Sequence[Job], prepare: Callable[[], None] | None) -> None:
        self.jobs = list(jobs)
        self.prepare = prepare
        self.future: Future[None] = Future()
        self.withdrawn = False


class Batcher:
    """Shares `decoder` between threads: jobs are admitted between steps, stepped together and retired one by one.

    Everything that computes runs on one thread of its own, which ends when there is no work for a while. Memory is
    bounded by the rows of the decoder, for which callers wait in order of arrival, and by `queue`, the number of
    requests that may be under way at once.
    """

    def __init__(self, decoder: Decoder, queue: int) -> None:
        self.decoder = decoder
        self.queue = queue
        self._state = threading.Condition()
        self._requests = 0
        self._free = list(range(decoder.rows))
        self._line: deque[object] = deque()
        self._work: deque[Callable[[], None]] = deque()
        self._groups: list[_Group] = []
        self._running = Running(decoder)
        self._alive = False

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around all that is done for one request. Raises BusyError when `queue` requests are under way already."""
        with self._state:
            if self._requests >= self.queue:
                raise BusyError(f"{self._requests} requests are under way already: try later, or load with more queue")
            self._requests += 1
        try:
            yield
        finally:
            with self._state:
                self._requests -= 1

    @contextmanager
    def rows(self, count: int) -> Iterator[list[int]]:
        """Hold `count` rows, at most all of the decoder's, once they are free and those who came before have theirs."""
        ticket = object()
        with self._state:
            self._line.append(ticket)
            try:
                self._state.wait_for(lambda: self._line[0] is ticket and len(self._free) >= count)
                # the lowest rows, which lie together
                self._free.sort(reverse=True)
                held = [self._free.pop() for _ in range(count)]
            finally:
                self._line.remove(ticket)
                self._state.notify_all()
        try:
            yield held
        finally:
            with self._state:
                self._free += held
                self._state.notify_all()

    def call(self, function: Callable[[], T]) -> T:
        """The result of `function`, run between two steps."""
        future: Future[T] = Future()
        self._submit(lambda: _fulfil(future, function))
        return future.result()

    def generate(self, jobs: Sequence[Job], prepare: Callable[[], None] | None = None) -> None:
        """Run `jobs`, in rows that the caller holds, until every search is over; `prepare` is called before, between
        two steps, as by `call`.
        """
        group = _Group(jobs, prepare)
        self._submit(lambda: self._admit(group))
        try:
            group.future.result()
        except BaseException:
            # the caller gives up its rows next: no job may be in them any more
            group.withdrawn = True
            wait([group.future])
            raise
        raise_first(jobs)

    def _submit(self, work: Callable[[], None]) -> None:
        with self._state:
            self._work.append(work)
            self._state.notify_all()
            if not self._alive:
                self._alive = True
                # a daemon: while it only waits, it must not hold up the end of the program
                threading.Thread(target=self._loop, name="heedful", daemon=True).start()

    def _loop(self) -> None:
        while True:
            with self._state:
                if not self._groups and not self._state.wait_for(lambda: self._work, _IDLE):
                    self._alive = False
                    return
                # one at a time: those who decode get on between the inputs that others bring
                work = self._work.popleft() if self._work else None
            if work is not None:
                work()
            self._retire()
            if self._groups:
                self._step()

    def _admit(self, group: _Group) -> None:
        if group.withdrawn:
            group.future.set_result(None)
            return
        try:
            if group.prepare is not None:
                group.prepare()
            self._running.admit(group.jobs)
            self._groups.append(group)
        except BaseException as error:
            self._running.remove(group.jobs)
            group.future.set_exception(error)

    def _step(self) -> None:
        try:
            self._running.step()
        except BaseException as error:
            # the caches are in an unknown state: nobody's tokens can be trusted
            for group in self._groups:
                self._running.remove(group.jobs)
                group.future.set_exception(error)
            self._groups.clear()

    def _retire(self) -> None:
        """Give back the groups that are over, or that nobody waits for any more."""
        live = set(map(id, self._running.jobs.values()))
        for group in list(self._groups):
            if group.withdrawn or not any(id(job) in live for job in group.jobs):
                self._groups.remove(group)
                self._running.remove(group.jobs)
                group.future.set_result(None)


def _fulfil(future: Future[T], function: Callable[[], T]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
