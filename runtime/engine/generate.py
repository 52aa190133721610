"""The decoding loop: jobs in, tokens out, all live rows of a decoder stepped together."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from heedful.runtime.engine.decoder import Feed
from heedful.runtime.engine.search import Search
from heedful.runtime.engine.slots import Slots


class Stepper(Protocol):
    """What `generate` needs of a decoder."""

    def step(self, feeds: Mapping[int, Feed]) -> dict[int, NDArray[np.float32]]:
        """Logits (len(select), vocabulary) of each row fed."""


class Job:
    """One input being decoded in `row` of a decoder: a prompt, then what `search` chooses.

    After the run `prompt_logits` (len(watch), vocabulary) holds the logits after the prompt tokens at `watch`.
    """

    def __init__(self, row: int, prompt: Sequence[int], search: Search, watch: Sequence[int] = ()) -> None:
        self.row = row
        self.prompt = list(prompt)
        self.search = search
        self.watch = list(watch)
        self.prompt_logits: NDArray[np.float32] | None = None
        self.slots = Slots()
        self.position = len(self.prompt)

    def start(self) -> Feed:
        """The prompt, of which the logits watched and the last are wanted."""
        count = len(self.prompt)
        tokens = np.asarray(self.prompt, np.int64)
        select = np.asarray([*self.watch, count - 1], np.int64)
        return Feed(tokens, np.arange(count), 0, self.slots.prefill(count), select)

    def advance(self, logits: NDArray[np.float32]) -> Feed | None:
        """What to feed after `logits`; None when the job is done."""
        if self.prompt_logits is None:
            self.prompt_logits, logits = logits[:-1].copy(), logits[-1:]
        step = self.search.advance(logits)
        if step is None:
            return None
        at, count = self.slots.used, len(step.tokens)
        positions = np.full(count, self.position)
        self.position += 1
        return Feed(np.asarray(step.tokens, np.int64), positions, at, self.slots.step(step.parents), np.arange(count))


def generate(decoder: Stepper, jobs: Iterable[Job]) -> None:
    """Run `jobs`, each in a row of its own, until every search is over.

    Prompts of different lengths are read in separate steps: padding one to the length of another changes the order of
    additions in its attention, and with it the last bits of its result.
    """
    running = {job.row: job for job in jobs}
    prompts: dict[int, dict[int, Feed]] = {}
    for row, job in running.items():
        prompts.setdefault(len(job.prompt), {})[row] = job.start()
    logits = {row: scores for feeds in prompts.values() for row, scores in decoder.step(feeds).items()}
    while logits:
        advanced = {row: running[row].advance(scores) for row, scores in logits.items()}
        feeds = {row: feed for row, feed in advanced.items() if feed is not None}
        logits = decoder.step(feeds) if feeds else {}
