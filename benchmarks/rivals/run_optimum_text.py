"""Runs a translation model in onnxruntime by way of optimum, in an environment of its own; see serve.py.

A request is that of a Translation (task.py), `model` a folder in Hugging Face's layout, with `precision` (float32, or
int8: dynamic, for AVX512-VNNI); the answer holds `translations`. The graphs are kept in the folder, below `onnx`.
"""

from collections.abc import Callable
from typing import Any

from graphs import opened
from optimum.onnxruntime import ORTModelForSeq2SeqLM
from serve import serve
from text_generation import translation

TASK = "text2text-generation-with-past"


def prepare(request: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    model = opened(ORTModelForSeq2SeqLM, TASK, request["model"], request["precision"], request["threads"])
    return translation(model, request)


if __name__ == "__main__":
    serve("optimum-onnx", prepare)
