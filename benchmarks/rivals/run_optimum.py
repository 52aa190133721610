"""Runs Whisper in onnxruntime by way of optimum, in an environment of its own; see serve.py.

A request holds `model` (a folder in Hugging Face's layout), `precision` (float32, or int8: dynamic, for AVX512-VNNI),
`threads`, `windows` and `options` for `generate`; the answer `text`. The graphs are kept in the folder, below `onnx`.
"""

from collections.abc import Callable
from typing import Any

from generation import transcription
from graphs import opened
from optimum.onnxruntime import ORTModelForSpeechSeq2Seq
from serve import serve

TASK = "automatic-speech-recognition-with-past"


def prepare(request: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    model = opened(ORTModelForSpeechSeq2Seq, TASK, request["model"], request["precision"], request["threads"])
    return transcription(model, request)


if __name__ == "__main__":
    serve("optimum-onnx", prepare)
