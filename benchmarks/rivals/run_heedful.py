"""Runs Heedful as its rivals are run; see serve.py.

A request holds `model` (the name of a bundle), `threads`, `options` and either `audio`, a path, or `windows`, .npy
files of at most 30 s at 16 kHz, each transcribed on its own. The answer holds `text`.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from serve import serve

from heedful.runtime import load

opened = cache(load)


def prepare(request: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    transcribe = opened(request["model"], "cpu", threads=request["threads"])
    sources: list[tuple[Any, int | None]] = [(np.load(window), 16_000) for window in request.get("windows", ())]
    sources = sources or [(request["audio"], None)]

    def timed() -> dict[str, Any]:
        found = [transcribe(audio, sample_rate=rate, **request["options"]) for audio, rate in sources]
        return {"text": " ".join(each.text for each in found)}

    return timed


if __name__ == "__main__":
    serve("heedful", prepare)
