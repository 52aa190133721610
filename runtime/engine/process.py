"""The process that a model belongs to."""

import os

from heedful.runtime.errors import DeviceError


class Process:
    """The one that makes this. Threads are not forked with it: who waits for one, or for a lock, would for ever."""

    def __init__(self) -> None:
        self._number = os.getpid()

    def check(self) -> None:
        """Raise DeviceError in a process that was forked from it."""
        if os.getpid() != self._number:
            raise DeviceError(
                "this model was loaded before the process was forked, and its threads stayed behind: load it in the "
                "forked process (gunicorn: without --preload), or start processes by 'spawn' (multiprocessing)"
            )
