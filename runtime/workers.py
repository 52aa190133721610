"""Threads that work for a generator."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def workers(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """`count` threads, called `name`, for as long as a generator runs.

    What was begun is waited for at its end; where an error ends it, what was not begun is dropped.

    A generator that is closed before its end waits for nobody. Python closes one that nobody takes further when it
    collects garbage, in any thread, even one that is just being started and holds locks that another needs to end.
    """
    pool = ThreadPoolExecutor(count, name)
    try:
        yield pool
    except BaseException as error:
        pool.shutdown(wait=not isinstance(error, GeneratorExit), cancel_futures=True)
        raise
    pool.shutdown()
