"""The decoding loop: jobs in, tokens out, all live rows of a decoder stepped together."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from heedful.runtime.engine.decoder import All, Feed, Scores, Wanted
from heedful.runtime.engine.search import Search
from heedful.runtime.engine.slots import Slots


class Stepper(Protocol):
    """What decoding needs of a decoder."""

    @property
    def spare(self) -> int:
        """How many slots of a row nobody may see any more before the others are moved together."""

    def step(self, feeds: Mapping[int, Feed]) -> Mapping[int, Scores]:
        """Logits (len(select), vocabulary) of each row fed, or the best of them where that is enough, in memory that
        the next step may write to.
        """

    def release(self, row: int) -> None:
        """What the caches hold of `row` is no longer needed."""


class Job:
    """One input being decoded in `row` of a decoder: a prompt, then what `search` chooses.

    After the run `prompt_logits` (len(watch), vocabulary) holds the logits after the prompt tokens at `watch`, and
    `first_token` when the first token was chosen, by time.perf_counter.
    """

    def __init__(self, row: int, prompt: Sequence[int], search: Search, watch: Sequence[int] = ()) -> None:
        self.row = row
        self.prompt = list(prompt)
        self.search = search
        self.watch = list(watch)
        self.prompt_logits: NDArray[np.float32] | None = None
        self.slots = Slots()
        self.position = len(self.prompt)
        self.first_token = 0.0
        self.error: Exception | None = None

    def start(self) -> Feed:
        """The prompt, of which the logits watched and the last are wanted."""
        count = len(self.prompt)
        wanted = Wanted() if self.watch else self.search.wanted
        select = [*self.watch, count - 1]
        return Feed(self.prompt, range(count), 0, self.slots.prefill(count), select, wanted=wanted)

    def advance(self, scores: Scores, spare: int) -> Feed | None:
        """What to feed after `scores`, with less than `spare` slots that nobody sees; None when the job is done."""
        if not self.first_token:
            self.first_token = time.perf_counter()
            if self.watch:
                assert isinstance(scores, All)  # as it was asked for
                self.prompt_logits = scores.logits[:-1].copy()
            scores = scores.part(slice(-1, None))
        step = self.search.advance(scores)
        if step is None:
            return None
        kept = self.slots.compact(step.parents, spare)
        at, count = self.slots.used, len(step.tokens)
        positions = [self.position] * count
        self.position += 1
        mask = self.slots.step(step.parents)
        return Feed(step.tokens, positions, at, mask, range(count), kept, self.search.wanted)


class Running:
    """The jobs being decoded in one decoder, each in a row of its own."""

    def __init__(self, decoder: Stepper) -> None:
        self.decoder = decoder
        self.jobs: dict[int, Job] = {}
        self.scores: dict[int, Scores] = {}

    def admit(self, jobs: Iterable[Job]) -> None:
        """Read the prompts of `jobs`.

        Prompts of different lengths are read in separate steps: padding one to the length of another changes the order
        of additions in its attention, and with it the last bits of its result.
        """
        prompts: dict[int, dict[int, Feed]] = {}
        for job in jobs:
            self.jobs[job.row] = job
            prompts.setdefault(len(job.prompt), {})[job.row] = job.start()
        for feeds in prompts.values():
            waiting = {row: scores.copy() for row, scores in self.scores.items()}
            self.scores = {**waiting, **self.decoder.step(feeds)}

    def step(self) -> None:
        """One token more for every job; those that are over, or whose search fails, leave."""
        feeds = {}
        for row, scores in list(self.scores.items()):
            job = self.jobs[row]
            try:
                feed = job.advance(scores, self.decoder.spare)
            except Exception as error:  # one job's error is not its neighbours'
                job.error, feed = error, None
            if feed is None:
                self.remove([job])
            else:
                feeds[row] = feed
        self.scores = dict(self.decoder.step(feeds)) if feeds else {}

    def remove(self, jobs: Iterable[Job]) -> None:
        """Drop `jobs`, over or not, as far as they are still there."""
        for job in jobs:
            if self.jobs.get(job.row) is job:
                del self.jobs[job.row]
                self.scores.pop(job.row, None)
                self.decoder.release(job.row)


def generate(decoder: Stepper, jobs: Iterable[Job]) -> None:
    """Run `jobs`, each in a row of its own, until every search is over."""
    waiting = list(jobs)
    running = Running(decoder)
    running.admit(waiting)
    while running.jobs:
        running.step()
    raise_first(waiting)


def raise_first(jobs: Iterable[Job]) -> None:
    """Raise the error of the first of `jobs` whose search failed, if one did."""
    for job in jobs:
        if job.error is not None:
            raise job.error
