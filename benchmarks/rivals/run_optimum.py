"""Runs Whisper in onnxruntime by way of optimum, in an environment of its own; see serve.py.

A request holds `model` (a folder in Hugging Face's layout), `precision` (float32, or int8: dynamic, for AVX512-VNNI),
`threads`, `windows` and `options` for `generate`; the answer `text`. The graphs are kept in the folder, below `onnx`.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from generation import transcription
from onnxruntime import SessionOptions
from optimum.exporters.onnx import main_export
from optimum.onnxruntime import ORTModelForSpeechSeq2Seq, ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig
from serve import serve

GRAPHS = ("encoder_model", "decoder_model", "decoder_with_past_model")


def exported(folder: Path) -> Path:
    """The float32 graphs of the model in `folder`, a decoder for the prompt and one for the steps after it."""
    graphs = folder / "onnx" / "float32"
    if not graphs.exists():
        main_export(str(folder), graphs, task="automatic-speech-recognition-with-past", no_post_process=True)
    return graphs


def quantized(folder: Path) -> Path:
    """The same graphs with int8 weights."""
    graphs = folder / "onnx" / "int8"
    if not graphs.exists():
        plan = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
        for name in GRAPHS:
            quantizer = ORTQuantizer.from_pretrained(exported(folder), file_name=f"{name}.onnx")
            quantizer.quantize(save_dir=graphs, quantization_config=plan, file_suffix="")
    return graphs


@cache
def opened(folder: str, precision: str, threads: int) -> Any:
    graphs = {"float32": exported, "int8": quantized}[precision](Path(folder))
    options = SessionOptions()
    options.intra_op_num_threads = threads
    return ORTModelForSpeechSeq2Seq.from_pretrained(graphs, use_cache=True, use_merged=False, session_options=options)


def prepare(request: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    return transcription(opened(request["model"], request["precision"], request["threads"]), request)


if __name__ == "__main__":
    serve("optimum-onnx", prepare)
