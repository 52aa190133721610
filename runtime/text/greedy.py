"""A text by itself, written by greedy search in one run of a graph (export/greedy.py)."""

import numpy as np

from heedful.runtime.engine.decoder import Best, Decoder
from heedful.runtime.engine.device import RUN
from heedful.runtime.engine.search import Search
from heedful.runtime.text.model import GREEDY, TextModel
from heedful.runtime.text.shortlist import ShortDecoder

_OUTPUTS = ("written", "logit", "total")


def write(model: TextModel, first: int, decoder: Decoder, row: int, steps: int, search: Search) -> None:
    """Have `search`, greedy and without rules, choose all its tokens, `steps` at most, after the token `first`.

    It sees what it would see step by step. The text is about what `decoder`, of `model` on the CPU, remembers in `row`,
    whose slots are then free; its caches are not written to.
    """
    words = decoder.words(row) if isinstance(decoder, ShortDecoder) else {}
    given = {
        "tokens": np.asarray([[first]]),
        "steps": np.asarray(steps),
        "frames": np.asarray([decoder.buffers.frames[row]]),
        **decoder.buffers.remembered(row),
        **words,
    }
    tokens, logits, totals = model.sessions.open(GREEDY[bool(words)]).run(_OUTPUTS, given, RUN)
    for i in range(len(tokens)):
        here = slice(i, i + 1)
        search.advance(Best(logits[here, None], tokens[here, None], totals[here]))
    decoder.release(row)
