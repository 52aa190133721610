"""Runs fxtranslate in an environment of its own; see serve.py.

A request is that of a Translation (task.py), `model` a folder of Mozilla's with model, vocabulary and shortlist, and
`shortlist`, whether to use the last. The engine reads one line at a time, greedily, to the end that the model chooses:
`batch`, `beams` and `length` are not for it. Its translators hold the interpreter's lock, so that threads are processes
here, and `peak` is not theirs; with one thread there is no other process. The answer holds `translations`.
"""

from collections.abc import Callable
from functools import cache, partial
from multiprocessing import Pool
from multiprocessing.pool import Pool as Workers
from pathlib import Path
from typing import Any

from fxtranslate import Translator
from order import longest_first
from serve import serve

# so many lines go to a process at once
CHUNK = 4


@cache
def opened(model: str, shortlist: bool) -> Translator:
    """The translator of this process."""
    patterns = "model.*.bin", "vocab.*.spm", "lex.*.bin"
    weights, vocabulary, lexicon = (next(Path(model).glob(pattern)).read_bytes() for pattern in patterns)
    return Translator(weights, vocabulary, vocabulary, lexicon if shortlist else None)


def translated(model: str, shortlist: bool, line: str) -> str:
    return opened(model, shortlist).translate(line)


@cache
def workers(number: int) -> Workers:
    return Pool(number)


def prepare(request: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    threads = request["threads"]
    spread = partial(workers(threads).map, chunksize=CHUNK) if threads > 1 else map
    translate = partial(spread, partial(translated, request["model"], request["shortlist"]))
    return lambda: {"translations": longest_first(request["lines"], translate)}


if __name__ == "__main__":
    serve("fxtranslate", prepare)
