"""The graphs of a bundle, each opened once, ahead of its use if told."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import onnxruntime as ort

from heedful.runtime.bundle import Bundle
from heedful.runtime.engine.device import Device, open_session
from heedful.runtime.engine.process import Process


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
        self._process = Process()

    def on(self, threads: int) -> "Sessions":
        """Sessions of their own for the same graphs, on so many threads: with one, on that of the caller."""
        self._process.check()
        return Sessions(self.bundle, self.device, threads)

    def open(self, graph: str) -> ort.InferenceSession:
        """The session of `graph`."""
        return self.open_ahead(graph).result()

    def open_ahead(self, graph: str) -> "Future[ort.InferenceSession]":
        """The session of `graph` to come, which a thread begins to open if none has; what failed is tried again."""
        self._process.check()
        with self._lock:
            found = self._opened.get(graph)
            if found is None or (found.done() and found.exception() is not None):
                path = self.bundle.file(f"{graph}.onnx")
                opener = ThreadPoolExecutor(1, "heedful-open")
                found = self._opened[graph] = opener.submit(open_session, path, self.device, self.threads)
                opener.shutdown(wait=False)
            return found
