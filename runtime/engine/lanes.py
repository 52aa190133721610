"""Where inputs are computed: a few with all threads together, many on a core each."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from heedful.runtime.engine.batcher import Batcher
from heedful.runtime.engine.cores import cores
from heedful.runtime.engine.decoder import Decoder
from heedful.runtime.engine.model import Model
from heedful.runtime.engine.rows import Rows

M = TypeVar("M", bound=Model)


def threads_of(model: Model) -> int:
    """The threads among which inputs can be divided: those of a CPU; a GPU has one."""
    return (model.sessions.threads or cores()) if model.device.name == "cpu" else 1


@dataclass(slots=True)
class Lane(Generic[M]):
    """A model, a decoder of its own behind a batcher, and how many hypotheses are there or on their way."""

    model: M
    batcher: Batcher
    load: int = 0


@dataclass(frozen=True, slots=True)
class Place(Generic[M]):
    """Rows of a lane's decoder."""

    model: M
    batcher: Batcher
    rows: list[int]

    @property
    def row(self) -> int:
        """The first row, where there is but one."""
        return self.rows[0]

    @property
    def buffers(self) -> Rows:
        """The memory of all rows of the decoder."""
        return self.batcher.decoder.buffers


class Lanes(Generic[M]):
    """The lanes of one model: a wide one, whose graphs use all threads, and narrow ones, one for each thread.

    Many inputs are done sooner on a core each than one after the other on all cores, because threads that share a
    product wait for one another. Up to `few` hypotheses at a time are all in the wide lane, where both cores read the
    weights once for all. Results are the same. Lanes are made when they are first needed, since the sessions of the
    wide one and those of the narrow ones each hold the weights. Places have up to `most` rows. A GPU has a wide lane
    only.
    """

    def __init__(self, model: M, *, rows: int, few: int, decoder: Callable[[M, int], Decoder] = Model.decoder) -> None:
        self.model = model
        self.rows = rows
        self.few = few
        self.threads = min(threads_of(model), rows)
        self.most = -(-rows // self.threads)
        self._decoder = decoder
        self._wide: Lane[M] | None = None
        self._narrow: list[Lane[M]] = []
        self._lock = threading.Lock()
        # what one input by itself needs is there from the start
        self._choose(1)

    @property
    def wide(self) -> Lane[M]:
        """The lane whose graphs use all threads."""
        if self._wide is None:
            self._wide = self._lane(self.model, self.rows)
        return self._wide

    @contextmanager
    def place(self, rows: int = 1, *, width: int = 1, company: int = 1) -> Iterator[Place[M]]:
        """Hold `rows` rows as soon as they are free, for inputs with `width` hypotheses each, which are some of
        `company` inputs that are known to come together.
        """
        load = rows * width
        with self._lock:
            lane = self._choose(load, company * width)
            lane.load += load
        try:
            with lane.batcher.rows(rows) as held:
                yield Place(lane.model, lane.batcher, held)
        finally:
            with self._lock:
                lane.load -= load

    @contextmanager
    def settled(self, place: Place[M]) -> Iterator[Place[M]]:
        """Hold `place`, one row whose memory has been written, for what is to follow; or, if it is in the wide lane and
        too many others have come since, a row of a narrow lane that has the same memory.

        Otherwise three lanes would share the cores of two.
        """
        with self._lock:
            crowded = self._wide is not None and place.batcher is self._wide.batcher and self.load > self.few
            moves = crowded and any(lane.load < self.most for lane in self._narrow)
        if not moves:
            yield place
            return
        memory = place.batcher.call(lambda: place.buffers.read_memory(place.row))
        with self.place(company=self.few + 1) as other:
            other.batcher.call(lambda: other.buffers.write_memory(other.row, memory))
            yield other

    @property
    def load(self) -> int:
        """How many hypotheses there are, or on their way, in all lanes."""
        return sum(lane.load for lane in (self._wide, *self._narrow) if lane is not None)

    def _choose(self, load: int, company: int = 0) -> Lane[M]:
        if self.threads == 1 or max(self.load + load, company) <= self.few:
            return self.wide
        if not self._narrow:
            model = self.model.on_one_thread()
            self._narrow = [self._lane(model, self.most) for _ in range(self.threads)]
        return min(self._narrow, key=lambda lane: lane.load)

    def _lane(self, model: M, rows: int) -> Lane[M]:
        return Lane(model, Batcher(self._decoder(model, rows)))


class LanesByDecoder(Generic[M]):
    """The lanes of one model for each kind of decoder that it has, made when they are first needed."""

    def __init__(self, model: M, *, rows: int, few: int) -> None:
        self._make = partial(Lanes[M], model, rows=rows, few=few)
        self._made: dict[Callable[[M, int], Decoder], Lanes[M]] = {}
        self._lock = threading.Lock()

    def __getitem__(self, decoder: Callable[[M, int], Decoder]) -> Lanes[M]:
        """The lanes whose decoders `decoder` makes, given a model and a number of rows."""
        with self._lock:
            if decoder not in self._made:
                self._made[decoder] = self._make(decoder=decoder)
            return self._made[decoder]
