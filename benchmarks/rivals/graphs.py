"""Models of optimum's in onnxruntime. Their graphs are kept in the model's folder, below `onnx`."""

import shutil
from functools import cache
from pathlib import Path
from typing import Any

from onnxruntime import SessionOptions
from optimum.exporters.onnx import main_export
from optimum.onnxruntime import ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig

GRAPHS = ("encoder_model", "decoder_model", "decoder_with_past_model")


def exported(folder: Path, task: str) -> Path:
    """The float32 graphs of the model in `folder`, a decoder for the prompt and one for the steps after it."""
    graphs = folder / "onnx" / "float32"
    if not graphs.exists():
        main_export(str(folder), graphs, task=task, no_post_process=True)
    return graphs


def quantized(folder: Path, task: str) -> Path:
    """The same graphs with int8 weights."""
    graphs = folder / "onnx" / "int8"
    if not graphs.exists():
        plan = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
        for name in GRAPHS:
            quantizer = ORTQuantizer.from_pretrained(exported(folder, task), file_name=f"{name}.onnx")
            quantizer.quantize(save_dir=graphs, quantization_config=plan, file_suffix="")
        # the quantizer leaves out what `generate` goes by
        shutil.copy(exported(folder, task) / "generation_config.json", graphs)
    return graphs


@cache
def opened(kind: Any, task: str, folder: str, precision: str, threads: int) -> Any:
    """The model in `folder` as a `kind`, one of optimum's classes; its graphs are made where they are not there."""
    graphs = {"float32": exported, "int8": quantized}[precision](Path(folder), task)
    options = SessionOptions()
    options.intra_op_num_threads = threads
    return kind.from_pretrained(graphs, use_cache=True, use_merged=False, session_options=options)
