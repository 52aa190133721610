"""The graphs of a bundle, each opened once, ahead of its use if told."""

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import onnxruntime as ort

from heedful.runtime.bundle import Bundle
from heedful.runtime.engine.device import Device, open_session
from heedful.runtime.errors import DeviceError


class Sessions:
    """The graphs of `bundle` on `device`, with `threads` inside an operator, 0 for one per core.

    Each maps the weights that it has once more, so it is opened when it is first needed. In a process that was forked
    from the one that made them they raise DeviceError.
    """

    def __init__(self, bundle: Bundle, device: Device, threads: int = 0) -> None:
        self.bundle = bundle
        self.device = device
        self.threads = threads
        self._opened: dict[str, Future[ort.InferenceSession]] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    def on(self, threads: int) -> "Sessions":
        """Sessions of their own for the same graphs, on so many threads: with one, on that of the caller."""
        self._check_process()
        return Sessions(self.bundle, self.device, threads)

    def open(self, graph: str) -> ort.InferenceSession:
        """The session of `graph`."""
        return self.open_ahead(graph).result()

    def open_ahead(self, graph: str) -> "Future[ort.InferenceSession]":
        """The session of `graph` to come, which a thread begins to open if none has; what failed is tried again."""
        self._check_process()
        with self._lock:
            found = self._opened.get(graph)
            if found is None or (found.done() and found.exception() is not None):
                path = self.bundle.file(f"{graph}.onnx")
                opener = ThreadPoolExecutor(1, "heedful-open")
                found = self._opened[graph] = opener.submit(open_session, path, self.device, self.threads)
                opener.shutdown(wait=False)
            return found

    def _check_process(self) -> None:
        # threads are not forked with a process: who waits for one, or for a lock that it held, waits for ever
        if os.getpid() != self._process:
            raise DeviceError(
                "this model was loaded before the process was forked, and its threads stayed behind: load it in the "
                "forked process (gunicorn: without --preload), or start processes by 'spawn' (multiprocessing)"
            )
