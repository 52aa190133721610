"""Runs a captioner in onnxruntime by way of optimum, in an environment of its own; see serve.py.

A request is one of caption_speed.py, `model` a vision-encoder-decoder model in Hugging Face's layout, in float32. The
answer holds `captions` and their `tokens`. The graphs are kept in the folder, below `onnx`.
"""

from collections.abc import Callable
from typing import Any

from caption_generation import captioning
from graphs import opened
from optimum.onnxruntime import ORTModelForVision2Seq
from serve import serve

TASK = "image-to-text-with-past"


def prepare(request: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    return captioning(opened(ORTModelForVision2Seq, TASK, request["model"], "float32", request["threads"]), request)


if __name__ == "__main__":
    serve("optimum-onnx", prepare)
