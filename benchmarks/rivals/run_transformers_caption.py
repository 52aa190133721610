"""Runs a captioner in transformers, eagerly in torch, in an environment of its own; see serve.py.

A request is one of caption_speed.py, `model` a folder in Hugging Face's layout, in float32. The answer holds `captions`
and their `tokens`.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from caption_generation import captioning
from serve import serve
from transformers import AutoModelForImageTextToText


@cache
def opened(folder: str) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def prepare(request: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    return captioning(opened(request["model"]), request)


if __name__ == "__main__":
    serve("transformers", prepare)
