"""Runs Heedful's captions as its rivals are run; see serve.py.

A request is one of caption_speed.py, `model` a bundle. The answer holds `captions` and their `tokens`.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from serve import serve

from heedful.runtime import load

opened = cache(load)


def prepare(request: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    caption = opened(request["model"], "cpu", threads=request["threads"])
    # lengths count the token that a caption begins with
    length = request["length"] + 1
    options = {"beams": request["beams"], "batch": request["batch"], "min_length": length, "max_length": length}

    def timed() -> dict[str, Any]:
        found = caption(request["photos"], **options)
        return {"tokens": [each.tokens for each in found], "captions": [each.text for each in found]}

    return timed


if __name__ == "__main__":
    serve("heedful", prepare)
