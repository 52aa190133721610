"""From a bundle's settings of search, as export/generation.py writes them, to the search and its rules."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from heedful.runtime.engine.rules import BadWords, NoRepeatNgram, NotBefore, RepetitionPenalty, Rule, Suppress
from heedful.runtime.engine.search import Beam, Limits, Sample, Search


def build_rules(settings: Mapping[str, Any], start: Sequence[int], end: int, *, unread: int = 0) -> list[Rule]:
    """The rules that `settings` ask for of texts that begin with the tokens `start`, of which the first `unread` count
    in lengths only, and end with `end`.
    """
    text = start[unread:]
    rules: list[tuple[object, Rule]] = [
        (settings["suppress"], Suppress(settings["suppress"])),
        (settings["bad_words"], BadWords(settings["bad_words"], text)),
        (settings["no_repeat_ngram"], NoRepeatNgram(max(settings["no_repeat_ngram"], 1), text)),
        (settings["min_length"] > len(start), NotBefore(end, settings["min_length"] - len(start))),
        (settings["repetition_penalty"] != 1, RepetitionPenalty(settings["repetition_penalty"], text)),
    ]
    return [rule for asked, rule in rules if asked]


# hypotheses that must have ended for the search to be over, in widths of the beam: see `Beam`
_PATIENCE = {True: 1.0, False: None, "never": math.inf}


def build_search(settings: Mapping[str, Any], limits: Limits) -> Search:
    """The search that `settings` ask for, within `limits`."""
    if settings["beams"] == 1:
        return Sample(limits)
    return Beam(
        limits,
        width=settings["beams"],
        length_penalty=settings["length_penalty"],
        patience=_PATIENCE[settings["early_stopping"]],
    )
