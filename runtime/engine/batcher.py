"""Continuous batching: the jobs of many callers, decoded together in the rows of one decoder."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from heedful.runtime.engine.decoder import Decoder
from heedful.runtime.engine.generate import Job, Running, raise_first

T = TypeVar("T")


class _Group:
    """Jobs that one caller waits for, and what must be done before they begin."""

    def __init__(self, jobs: Sequence[Job], prepare: Callable[[], None] | None) -> None:
        self.jobs = list(jobs)
        self.prepare = prepare
        self.future: Future[None] = Future()
        self.withdrawn = False


class Batcher:
    """Shares `decoder` between threads: jobs are admitted between steps, stepped together and retired one by one.

    There is no thread of its own: the first caller who waits for a result computes, for all, until it has its own, and
    leaves the place to another who waits. Memory is bounded by the rows of the decoder, for which callers wait in order
    of arrival.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._state = threading.Condition()
        self._free = list(range(decoder.rows))
        self._line: deque[object] = deque()
        self._work: deque[Callable[[], None]] = deque()
        self._groups: list[_Group] = []
        self._running = Running(decoder)
        self._taken = False  # the place of who computes

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

        def work() -> None:
            try:
                self._settle(future, function())
            except BaseException as error:
                self._fail(error, future)

        self._work.append(work)
        self._attend(future)
        return future.result()

    def generate(self, jobs: Sequence[Job], prepare: Callable[[], None] | None = None) -> None:
        """Run `jobs`, in rows that the caller holds, until every search is over; `prepare` is called before, between
        two steps, as by `call`.
        """
        group = _Group(jobs, prepare)
        self._work.append(lambda: self._admit(group))
        try:
            self._attend(group.future)
        except BaseException:
            # the caller gives up its rows next: no job may be in them any more
            group.withdrawn = True
            self._attend(group.future)
            raise
        group.future.result()
        raise_first(jobs)

    def _attend(self, future: "Future[Any]") -> None:
        """Return once `future` is done: compute, or wait while another caller does."""
        with self._state:
            self._state.wait_for(lambda: future.done() or not self._taken)
            if future.done():
                return
            self._taken = True
        try:
            while not future.done():
                self._turn()
        finally:
            with self._state:
                self._taken = False
                self._state.notify_all()

    def _turn(self) -> None:
        """One piece of work, if there is any, and one step."""
        # one at a time: those who decode get on between the inputs that others bring
        if self._work:
            self._work.popleft()()
        self._retire()
        if self._groups:
            self._advance(self._running.step)

    def _admit(self, group: _Group) -> None:
        if group.withdrawn:
            self._settle(group.future, None)
            return
        try:
            if group.prepare is not None:
                group.prepare()
        except BaseException as error:
            for job in group.jobs:
                self.decoder.release(job.row)
            self._fail(error, group.future)
            return
        self._groups.append(group)
        self._advance(lambda: self._running.admit(group.jobs))

    def _advance(self, feed: Callable[[], None]) -> None:
        """Run the decoder."""
        try:
            feed()
        except BaseException as error:
            # the caches are in an unknown state: nobody's tokens can be trusted
            groups, self._groups = self._groups, []
            for group in groups:
                self._running.remove(group.jobs)
            self._fail(error, *(group.future for group in groups))

    def _retire(self) -> None:
        """Give back the groups that are over, or that nobody waits for any more."""
        live = self._running.jobs
        for group in list(self._groups):
            if group.withdrawn or not any(live.get(job.row) is job for job in group.jobs):
                self._groups.remove(group)
                self._running.remove(group.jobs)
                self._settle(group.future, None)

    def _settle(self, future: "Future[T]", result: T) -> None:
        """Give the caller who waits for `future` its result."""
        future.set_result(result)
        with self._state:
            self._state.notify_all()

    def _fail(self, error: BaseException, *futures: "Future[Any]") -> None:
        """Give the callers who wait for `futures` an error; what interrupts the one who computes is raised too."""
        mine = isinstance(error, Exception)
        for future in futures:
            future.set_exception(error if mine else RuntimeError(f"another request was interrupted by {error!r}"))
        with self._state:
            self._state.notify_all()
        if not mine:
            raise error
