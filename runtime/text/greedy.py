"""A text by itself, written by greedy search in one run of a graph (export/greedy.py)."""

import threading
from collections.abc import Sequence

import numpy as np

from heedful.runtime.engine.device import RUN
from heedful.runtime.engine.search import Hypothesis
from heedful.runtime.text.model import GREEDY, TextModel

# tokens that are written so at most: the graph keeps all logits of each until the last is there
_MOST = 256
_OUTPUTS = ("written", "logit", "total")


class Greedy:
    """Writes one text at a time with the graphs that `model`, which has them, has for it."""

    def __init__(self, model: TextModel) -> None:
        self.model = model
        # a second core that has slept is awake when most of a text is written (docs/experiments.md)
        self._sessions = model.sessions.on(1)
        self._taken = threading.Lock()
        # opened while the caller goes on
        self._sessions.open_ahead(GREEDY[False])

    def write(self, source: Sequence[int], first: int, steps: int, *, short: bool) -> Hypothesis | None:
        """What greedy search without rules writes about `source`, framing included, after the token `first`, in `steps`
        tokens at most: what `Sample` finds. `short`: in words of the shortlist.

        None where it might become too long, or another text is being written.
        """
        if steps > _MOST or not self._taken.acquire(blocking=False):
            return None
        try:
            tokens, lengths = self.model.padded([source])
            given = {"source": tokens, "lengths": lengths, "tokens": np.array([[first]]), "steps": np.array(steps)}
            if short:
                given["words"] = self.model.shortlist.words(source)
            found = self._sessions.open(GREEDY[short]).run(_OUTPUTS, given, RUN)
        finally:
            self._taken.release()
        written, logits, totals = (output.tolist() for output in found)
        logprob = 0.0
        # not by sum(), which from Python 3.12 on rounds otherwise than a search that adds one after the other
        for logit, total in zip(logits, totals, strict=True):
            logprob += logit - total
        ended = written[-1] == self.model.end
        text = tuple(written[:-1] if ended else written)
        return Hypothesis(text, logprob, logprob / (len(text) + 1), ended)
