"""Runs Heedful's translations as its rivals are run; see serve.py.

A request is that of a Translation (task.py), `model` the name of a bundle, with further `options`. Lines are read
whole, as the other engines read them. The answer holds `translations`.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from serve import serve

from heedful.runtime import load

opened = cache(load)


def prepare(request: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    translate = opened(request["model"], "cpu", threads=request["threads"])
    options = {"beams": request["beams"], "batch": request["batch"], "split": False, **request["options"]}
    if length := request["length"]:
        # lengths count the token that a text begins with
        options |= {"min_length": length + 1, "max_length": length + 1}
    return lambda: {"translations": [each.text for each in translate(request["lines"], **options)]}


if __name__ == "__main__":
    serve("heedful", prepare)
