"""How many requests one model may have under way at once."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from heedful.runtime.engine.process import Process
from heedful.runtime.errors import BusyError

T = TypeVar("T")


class Requests:
    """Admits requests, `queue` at a time, of whatever kind and wherever they are computed.

    In a process that was forked they raise DeviceError.
    """

    def __init__(self, queue: int) -> None:
        self.queue = queue
        # re-entrant: a request may end while garbage is collected, in a thread that is just here
        self._state = threading.Condition()
        self._under_way = 0
        self._process = Process()
        self._callers = ThreadPoolExecutor(queue, "heedful-request")

    @contextmanager
    def request(self, *, wait: bool = False) -> Iterator[None]:
        """Around all that is done for one request.

        Where `queue` requests are under way already, BusyError is raised, or, with `wait`, it begins once one is over.
        """
        self._process.check()
        with self._state:
            if wait:
                self._state.wait_for(lambda: self._under_way < self.queue)
            elif self._under_way >= self.queue:
                raise BusyError(
                    f"{self._under_way} requests are under way already: try later, submit it, or load with more queue"
                )
            self._under_way += 1
        try:
            yield
        finally:
            with self._state:
                self._under_way -= 1
                self._state.notify_all()

    def submit(self, function: Callable[[], T]) -> "Future[T]":
        """The result of `function`, called in the background once the request is admitted."""
        self._process.check()

        def when_admitted() -> T:
            with self.request(wait=True):
                return function()

        return self._callers.submit(when_admitted)
