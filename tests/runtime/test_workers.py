"""Threads that work for a generator: waited for where it ends, by nobody where it is given up."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from heedful.runtime.workers import workers


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    opened = threading.Event()
    yield opened
    opened.set()


def squares(begun: list[Future[Any]], last: Callable[[], object], error: Exception | None = None) -> Iterator[int]:
    """Two results, `last` being under way from the first on."""
    with workers(2, "worker") as pool:
        begun.append(pool.submit(pow, 2, 2))
        begun.append(pool.submit(last))
        yield begun[0].result()
        if error is not None:
            raise error
        yield 9


def test_results_come_and_the_threads_end(gate: threading.Event) -> None:
    gate.set()
    begun: list[Future[Any]] = []
    assert list(squares(begun, gate.wait)) == [4, 9]
    assert begun[1].result(0) is True
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("worker")]


def test_who_closes_it_waits_for_nobody(gate: threading.Event) -> None:
    """Else the collector of garbage would: a thread that is just being started may be the one to run it, holding a lock
    that the threads waited for need to end.
    """
    begun: list[Future[Any]] = []
    started = threading.Event()

    def last() -> None:
        started.set()
        gate.wait()

    given_up = squares(begun, last)
    assert next(given_up) == 4
    assert started.wait(20)
    closing = threading.Thread(target=given_up.close)  # type: ignore[attr-defined]
    closing.start()
    closing.join(20)
    assert not closing.is_alive()
    assert not begun[1].done()


def test_what_was_begun_is_over_when_an_error_is_raised() -> None:
    begun: list[Future[Any]] = []
    started, slow = threading.Event(), threading.Event()

    def last() -> bool:
        started.set()
        return slow.wait(0.2)

    results = squares(begun, last, ValueError("no"))
    assert next(results) == 4
    assert started.wait(20)
    with pytest.raises(ValueError, match="no"):
        next(results)
    assert begun[1].result(0) is False
