"""Runs Whisper in transformers, eagerly in torch, in an environment of its own; see serve.py.

A request holds `model` (a folder in Hugging Face's layout), `precision` (float32), `threads`, `windows` and `options`
for `generate`; the answer `text`.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from generation import transcription
from serve import serve
from transformers import WhisperForConditionalGeneration


@cache
def opened(folder: str, precision: str) -> Any:
    return WhisperForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, precision)).eval()


def prepare(request: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    return transcription(opened(request["model"], request["precision"]), request)


if __name__ == "__main__":
    serve("transformers", prepare)
