"""A text by itself, written by greedy search in one run of a graph (export/greedy.py)."""

import numpy as np

from heedful.runtime.engine.decoder import Decoder
from heedful.runtime.engine.device import RUN
from heedful.runtime.engine.search import Hypothesis
from heedful.runtime.text.model import GREEDY, TextModel
from heedful.runtime.text.shortlist import ShortDecoder

_OUTPUTS = ("written", "logit", "total")


def write(model: TextModel, first: int, decoder: Decoder, row: int, steps: int) -> Hypothesis:
    """What greedy search without rules writes after the token `first`, in `steps` tokens at most: what `Sample` finds.

    The text is about what `decoder`, of `model` on the CPU, remembers in `row`, whose slots are then free; its caches
    are not written to.
    """
    words = decoder.words(row) if isinstance(decoder, ShortDecoder) else {}
    given = {
        "tokens": np.asarray([[first]]),
        "steps": np.asarray(steps),
        "frames": np.asarray([decoder.buffers.frames[row]]),
        **decoder.buffers.remembered(row),
        **words,
    }
    found = model.sessions.open(GREEDY[bool(words)]).run(_OUTPUTS, given, RUN)
    decoder.release(row)
    tokens, logits, totals = (output.tolist() for output in found)
    logprob = 0.0
    # not by sum(), which from Python 3.12 on rounds otherwise than a search that adds one after the other
    for logit, total in zip(logits, totals, strict=True):
        logprob += logit - total
    ended = tokens[-1] == model.end
    text = tuple(tokens[:-1] if ended else tokens)
    return Hypothesis(text, logprob, logprob / (len(text) + 1), ended)
