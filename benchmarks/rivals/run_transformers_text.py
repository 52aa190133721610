"""Runs a translation model in transformers, eagerly in torch, in an environment of its own; see serve.py.

A request is that of a Translation (task.py), `model` a Marian model in Hugging Face's layout, with `precision`
(float32); the answer holds `translations`.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from serve import serve
from text_generation import translation
from transformers import MarianMTModel


@cache
def opened(folder: str, precision: str) -> Any:
    return MarianMTModel.from_pretrained(folder, dtype=getattr(torch, precision)).eval()


def prepare(request: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    return translation(opened(request["model"], request["precision"]), request)


if __name__ == "__main__":
    serve("transformers", prepare)
