"""Where inputs are computed: a few with all threads together, as many as there are threads on a core each."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from heedful.runtime.engine.batcher import Batcher
from heedful.runtime.engine.model import Model

M = TypeVar("M", bound=Model)


@dataclass(slots=True)
class Lane(Generic[M]):
    """A model, a decoder of its own behind a batcher, and how many inputs are there or on their way."""

    model: M
    batcher: Batcher
    inputs: int = 0


@dataclass(frozen=True, slots=True)
class Place(Generic[M]):
    """A row of a lane's decoder."""

    model: M
    batcher: Batcher
    row: int


class Lanes(Generic[M]):
    """The lanes of one model: a wide one, whose graphs use all threads, and narrow ones, one for each thread.

    Two inputs on a core each are done sooner than both one after the other on two cores, because threads that share a
    product wait for one another. Results are the same. The narrow lanes are there once there are as many inputs at a
    time as threads, fewer would leave cores idle: their sessions hold weights once more. A GPU has a wide lane only.
    """

    def __init__(self, model: M, *, rows: int, queue: int) -> None:
        self.rows = rows
        self.queue = queue
        threads = (model.threads or os.cpu_count() or 1) if model.device.name == "cpu" else 1
        self._threads = min(threads, rows)
        self.wide = self._lane(model, rows)
        self._narrow: list[Lane[M]] = []
        self._lock = threading.Lock()
        self.request = self.wide.batcher.request

    @contextmanager
    def place(self, *, company: int = 1) -> Iterator[Place[M]]:
        """Hold a row as soon as one is free, for one of `company` inputs that are known to come together."""
        with self._lock:
            lane = self._choose(company)
            lane.inputs += 1
        try:
            with lane.batcher.rows(1) as (row,):
                yield Place(lane.model, lane.batcher, row)
        finally:
            with self._lock:
                lane.inputs -= 1

    def _choose(self, company: int) -> Lane[M]:
        inputs = 1 + self.wide.inputs + sum(lane.inputs for lane in self._narrow)
        if self._threads == 1 or max(inputs, company) < self._threads:
            return self.wide
        if not self._narrow:
            model = self.wide.model.on_one_thread()
            self._narrow = [self._lane(model, -(-self.rows // self._threads)) for _ in range(self._threads)]
        return min(self._narrow, key=lambda lane: lane.inputs)

    def _lane(self, model: M, rows: int) -> Lane[M]:
        return Lane(model, Batcher(model.decoder(rows), self.queue))
